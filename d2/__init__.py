"""d2."""

from d2 import _torchvision as _torchvision  # first: what is imported later may import torchvision
