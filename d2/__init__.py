"""d2: sample a views × frames image matrix by composing a frozen video prior and a frozen
multi-view prior.

What a Python user needs. `load` is the short way, from a clip to a saved matrix; `sample_scene`
takes plain values, and `sample_matrix` wants no networks. Every name is imported when it is first
asked for, so that a command that needs no network does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2 import _torchvision as _torchvision  # what is imported later may import torchvision

if TYPE_CHECKING:
    from d2.api import SampledMatrix, Sampler, load
    from d2.matrix import Cameras, Cut, ImageMatrix, camera_ring, columns, put, rows, take
    from d2.noise import draw, step_noise
    from d2.pipeline import Sampled, sample_scene
    from d2.reference import make_clip, make_orbit
    from d2.rules.bundle import Rules
    from d2.sampling import Prediction, Step, Term, initial_x, karras_sigmas, sample_matrix
    from d2.scene import Scene, Truth
    from d2.shard import make_shard
    from d2.terms import Priors, Settings, Unary, joint_terms

__version__ = "0.1.0"

_HOMES = {  # module -> its names that a Python user needs
    "d2.api": ("SampledMatrix", "Sampler", "load"),
    "d2.scene": ("Scene", "Truth"),
    "d2.matrix": ("Cameras", "Cut", "ImageMatrix", "camera_ring", "columns", "put", "rows", "take"),
    "d2.noise": ("draw", "step_noise"),
    "d2.pipeline": ("Sampled", "sample_scene"),
    "d2.reference": ("make_clip", "make_orbit"),
    "d2.rules.bundle": ("Rules",),
    "d2.sampling": ("Prediction", "Step", "Term", "initial_x", "karras_sigmas", "sample_matrix"),
    "d2.shard": ("make_shard",),
    "d2.terms": ("Priors", "Settings", "Unary", "joint_terms"),
}

__all__ = [
    "Cameras",
    "Cut",
    "ImageMatrix",
    "Prediction",
    "Priors",
    "Rules",
    "Sampled",
    "SampledMatrix",
    "Sampler",
    "Scene",
    "Settings",
    "Step",
    "Term",
    "Truth",
    "Unary",
    "camera_ring",
    "columns",
    "draw",
    "initial_x",
    "joint_terms",
    "karras_sigmas",
    "load",
    "make_clip",
    "make_orbit",
    "make_shard",
    "put",
    "rows",
    "sample_matrix",
    "sample_scene",
    "step_noise",
    "take",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'd2' has no attribute {name!r}")
