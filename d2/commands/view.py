"""`d2 view`: which scene, and its page."""

from __future__ import annotations

from d2.config.bounds import values
from d2.config.command_line import Composed
from d2.files import absolute, given_path
from d2.recon.view import ViewJob, find_scene, view_command


def run(composed: Composed) -> int:
    """Show a scene until it is stopped; an InputError where there is not one."""
    config = composed.config
    scene, matrix = find_scene(absolute(config.run), given_path(config.matrix))
    return view_command(ViewJob(scene=scene, matrix=matrix, **values(config, "host port")))
