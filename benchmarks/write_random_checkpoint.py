"""Write a full-size checkpoint of a published prior with random weights: keys, shapes and bytes of
the official file.

For whoever wants to measure loading without the weights:

    python benchmarks/write_random_checkpoint.py svd_xt /tmp/svd_xt.safetensors /usr/bin/time -v
    python benchmarks/write_random_checkpoint.py svd_xt /tmp/svd_xt.safetensors --load bfloat16
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

from d2.nn.autoencoder import Autoencoder
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.checkpoint import PUBLISHED, layout, load_published, random_weight, wanted
from d2.priors.published import CLIP, Published

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TEXT = {  # of ViT-H-14: 77 tokens, 49408 words, width 1024
    "positional_embedding": (77, 1024),
    "text_projection": (1024, 1024),
    "logit_scale": (),
    "token_embedding.weight": (49408, 1024),
    "ln_final.weight": (1024,),
    "ln_final.bias": (1024,),
}


def shapes_of(published: Published) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official file, those that are left out among them."""
    sources, _ = layout(published, folder=False)
    shapes = {sources[name].keys[0]: shape for name, shape in wanted(published).items()}
    if isinstance(published.prior, CameraPriorConfig):
        return shapes
    assert published.prior.encoder is not None
    with torch.device("meta"):
        conditioning = Autoencoder(published.prior.encoder).state_dict()
    prefix = published.sources["prior.encoder."]
    shapes |= {prefix + key: tuple(tensor.shape) for key, tensor in conditioning.items()}
    return shapes | {CLIP + key: shape for key, shape in TEXT.items()}


def write(published: Published, path: Path, dtype: torch.dtype, seed: int) -> None:
    """Header, then one tensor after another; memory holds one."""
    kind, itemsize = DTYPES[str(dtype).removeprefix("torch.")], dtype.itemsize
    header, offset = {}, 0
    for key, shape in shapes_of(published).items():
        end = offset + math.prod(shape) * itemsize
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, fields in header.items():
            weight = random_weight(key, fields["shape"], str(seed)).to(dtype)
            file.write(weight.reshape(-1).view(torch.uint8).numpy().data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("path", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--load", choices=DTYPES, help="load the file to this type instead of writing it"
    )
    parser.add_argument("--device", default="cpu", help="to load to")
    args = parser.parse_args()
    published, start = PUBLISHED[args.name], time.perf_counter()
    if args.load:
        load_published(args.path, published, dtype=getattr(torch, args.load), device=args.device)
    else:
        write(published, args.path, getattr(torch, args.dtype), args.seed)
    size = args.path.stat().st_size
    print(
        f"{args.path}: {size} bytes, {'read' if args.load else 'written'} in"
        f" {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
