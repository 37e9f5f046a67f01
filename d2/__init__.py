"""d2: sample a views × frames image matrix by composing a frozen video prior and a frozen multi-view prior.

What a Python user needs, in plain values. The names of d2.pipeline and d2.terms are imported when they are first asked
for: the networks bring open_clip along, which takes seconds; the sampler itself needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2 import _torchvision as _torchvision  # first: what is imported later may import torchvision
from d2.matrix import Cameras, Cut, ImageMatrix, camera_ring, columns, put, rows, take
from d2.noise import draw, step_noise
from d2.sampling import Prediction, Step, Term, initial_x, karras_sigmas, sample_matrix
from d2.scene import Scene, Truth
from d2.shard import make_shard

if TYPE_CHECKING:
    from d2.pipeline import Rules, Sampled, make_clip, make_orbit, sample_scene
    from d2.terms import Priors, Settings, Unary, joint_terms

__version__ = "0.1.0"

__all__ = [
    "Cameras",
    "Cut",
    "ImageMatrix",
    "Prediction",
    "Priors",
    "Rules",
    "Sampled",
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
    if name in __all__:
        home = "d2.terms" if name in ("Priors", "Settings", "Unary", "joint_terms") else "d2.pipeline"
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'd2' has no attribute {name!r}")
