"""Golden pictures of the published preprocessing: at most one grey level off, 99 % of the pixels
equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2.data.folder import Clip
from d2.data.preprocess import preprocess_clip
from golden.case import Case


def check_preprocess(case: Case) -> None:
    assert case.meta["cases"], "no preprocessing case"
    for entry in case.meta["cases"]:
        check_picture(entry, case.folder)


def check_picture(entry: dict[str, Any], folder: Path) -> None:
    path, ratio = folder / entry["input"], entry["image_frame_ratio"]
    with Image.open(path) as image:
        rgba = torch.from_numpy(np.array(image.convert("RGBA")))
        assert list(image.size) == entry["size_wh"]
    crashes = entry.get("reference_crashes") is not None
    clip = Clip(
        path.stem, rgba.permute(2, 0, 1)[None], has_alpha=True, is_picture=not entry["folder_input"]
    )
    # an object larger than its frame: the reference crashes, a user is told
    if ratio is not None and ratio > 1:
        assert crashes
        with pytest.raises(ValueError, match="scenes.image_frame_ratio"):
            preprocess_clip(clip, size=576, image_frame_ratio=ratio)
        return

    pixels, masks = preprocess_clip(clip, size=576, image_frame_ratio=ratio)
    if crashes:
        # What crashes there is a square too small for its content. Here nothing may be cut off: the
        # object's area is the input's, at the scale of the smallest square that holds the frame (a
        # clip) or the object (a picture).
        columns, rows = (torch.nonzero(rgba[..., 3].any(dim=dim)) for dim in (0, 1))
        extent = [int(where[-1] - where[0]) + 1 for where in (columns, rows)]
        side = max(rgba.shape[:2]) if entry["folder_input"] else max(rgba.shape[0], *extent)
        area = float(rgba[..., 3].double().sum() / 255) * (576 / side) ** 2
        assert float(masks.sum()) == pytest.approx(area, rel=5e-3), entry["input"]
        return
    with Image.open(folder / entry["expected"]) as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    difference = (pixels[0].double() * 255 - expected).abs()
    assert difference.max() <= 1, f"{entry['expected']}: {float(difference.max())} grey levels"
    equal = (difference.amax(dim=0) < 0.5).double().mean()
    assert equal >= 0.99, f"{entry['expected']}: {float(equal):.4f} of the pixels are equal"
