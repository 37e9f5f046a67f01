"""The picture that README opens with, from a sampled scene: python docs/moving_picture.py
[outputs/sample/test_0000].

On the left runs the input, in the middle lies the sampled matrix with a mark that walks over its
cells, on the right is the cell under the mark: once around at frozen time, then around while time
runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from d2.io import preview_cells, read_matrix, read_truth

FILE = Path(__file__).parent / "demo.webp"
CELL, GAP, MARGIN, CAPTION = 34, 2, 16, 26  # pixels
MILLISECONDS = 160  # a frame
INK, INPUT, MARK = "#333333", "#2a6fdb", "#e0452f"


def main(folder: Path) -> None:
    """Write `FILE` from the matrix in a scene's folder."""
    matrix, truth = read_matrix(folder), read_truth(folder)
    if truth is None:
        raise ValueError(f"{folder}: has no truth, and so not the input; give a scene of world4d")
    clip = truth.pixels[matrix.cameras.input_view]
    cells = preview_cells(*matrix.pixels.shape[:2], matrix.cameras.input_view)
    frames = [drawn(matrix.pixels, clip, cell, matrix.cameras.input_view) for cell in cells]
    frames[0].save(
        FILE,
        save_all=True,
        append_images=frames[1:],
        duration=MILLISECONDS,
        loop=0,
        quality=72,
        method=6,
    )
    print(f"{FILE}: {len(frames)} frames, {FILE.stat().st_size / 1024:.0f} KiB")


def drawn(
    pixels: Tensor,  # v f 3 h w
    clip: Tensor,  # f 3 h w
    cell: tuple[int, int],
    input_view: int,
) -> Image.Image:
    """One frame of the picture: the input's frame, the matrix with a mark on the cell, and the cell
    itself."""
    (num_views, num_frames), (view, frame) = pixels.shape[:2], cell
    wide, high = (n * (CELL + GAP) - GAP for n in (num_frames, num_views))
    left, top = MARGIN + high // 2 + 2 * MARGIN, MARGIN + CAPTION
    canvas = Image.new(
        "RGB", (left + wide + 2 * MARGIN + high + MARGIN, top + high + MARGIN), "white"
    )
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)

    def put(picture: Tensor, at: tuple[int, int], side: int, colour: str | None = None) -> None:
        canvas.paste(image(picture).resize((side, side), Image.Resampling.LANCZOS), at)
        if colour:
            pen.rectangle(
                (at[0] - 2, at[1] - 2, at[0] + side + 1, at[1] + side + 1), outline=colour, width=2
            )

    for v in range(num_views):
        for f in range(num_frames):
            put(pixels[v, f], (left + f * (CELL + GAP), top + v * (CELL + GAP)), CELL)
    row = top + input_view * (CELL + GAP)
    pen.rectangle((left - 2, row - 2, left + wide + 1, row + CELL + 1), outline=INPUT, width=2)
    put(pixels[view, frame], (left + frame * (CELL + GAP), top + view * (CELL + GAP)), CELL, MARK)
    put(clip[frame], (MARGIN, top + high // 4), high // 2, INPUT)
    right = left + wide + 2 * MARGIN
    put(pixels[view, frame], (right, top), high, MARK)
    said = {
        MARGIN: "one video in",
        left: f"{num_views} views by {num_frames} frames out",
        right: "any view, any time",
    }
    for x, text in said.items():
        pen.text((x, MARGIN - 4), text, fill=INK, font=font)
    return canvas


def image(
    pixels: Tensor,  # 3 h w
) -> Image.Image:
    """Pixels in [0, 1] as a picture of Pillow's."""
    return Image.fromarray(
        (rearrange(pixels, "c h w -> h w c") * 255).round().to(torch.uint8).numpy()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/sample/test_0000"))
