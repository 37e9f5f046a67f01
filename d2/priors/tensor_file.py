"""Safetensors files: what lies where, told from the header alone, and one tensor at a time on the
file's own pages.

The format: eight bytes with the length of the header, the header (JSON: name -> type, shape,
place), the tensors.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COUNTERS = {"I64": torch.int64}  # may be in a file, never in a network
HEADER_LIMIT = 100_000_000  # bytes; the format's own


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    path: Path
    start: int  # bytes from the beginning of the file
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Tensors of a safetensors file; a ValueError names what else it is: text, pickle, half a
    download, fp8."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise InputError(f"{path}: {what_else(path)}; give the .safetensors file")
        if size < 8 + max(length, 2):
            raise InputError(
                f"{path}: half a download: its {size} bytes end before the tensors; fetch it again"
            )
        raw = file.read(length)
    try:
        table = json.loads(raw)
        table.pop("__metadata__", None)
        entries = {key: read_entry(fields, path, 8 + length) for key, fields in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a safetensors file, its header is no table of tensors; fetch it again"
        ) from error
    end = max((entry.end for entry in entries.values()), default=8 + length)
    if size < end:
        raise InputError(
            f"{path}: half a download: {size} of {end} bytes are there; fetch it again"
        )
    for key, entry in entries.items():
        if entry.dtype not in DTYPES | COUNTERS:
            raise InputError(
                f"{path}: {key} is {entry.dtype}; give a file in {', '.join(DTYPES)}, not a"
                " quantised one"
            )
        itemsize = (DTYPES | COUNTERS)[entry.dtype].itemsize
        if entry.end - entry.start != math.prod(entry.shape) * itemsize:
            raise InputError(
                f"{path}: damaged: {key} has not the bytes of its shape {entry.shape}; fetch it"
                " again"
            )
    return entries


def read_shards(index: Path) -> dict[str, Entry]:
    """Tensors of all shards that an index.json names (`weight_map`: tensor -> file beside it)."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not an index of shards; fetch it again") from error
    if absent := [
        name for name in shards if Path(name).name != name or not (index.parent / name).is_file()
    ]:
        raise InputError(
            f"{index}: of its {len(shards)} shards {', '.join(absent)} is not there; fetch it again"
        )
    entries: dict[str, Entry] = {}
    for name in shards:
        entries |= read_header(index.parent / name)
    for key, name in places.items():
        if key not in entries or entries[key].path.name != name:
            raise InputError(f"{index}: {key} is not in {name}; fetch both again")
    return entries


def read_entry(fields: dict, path: Path, offset: int) -> Entry:
    start, end = fields["data_offsets"]
    return Entry(
        str(fields["dtype"]),
        tuple(map(int, fields["shape"])),
        path,
        offset + int(start),
        offset + int(end),
    )


def what_else(path: Path) -> str:
    """What a file is that is no safetensors file."""
    with path.open("rb") as file:
        first = file.read(64)
    if first.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in (
        ".ckpt",
        ".pt",
        ".pth",
        ".bin",
    ):
        return "a pickle, which can run code and is never loaded"
    if first.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in the place of the weights"
    return "not a safetensors file"


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise an InputError that names a weight which holds what is not a number, or infinite."""
    if not tensor.isfinite().all():
        raise InputError(
            f"{path}: {name} is not finite throughout; fetch the file again, or train again"
        )


def mapped(entry: Entry) -> Tensor:
    """A tensor on the file's own pages; they are let go with it."""
    begin = entry.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    # a private copy: torch wants writable memory, and nobody writes
    with entry.path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), entry.end - begin, access=mmap.ACCESS_COPY, offset=begin)
    count = math.prod(entry.shape)
    flat = torch.frombuffer(
        pages, dtype=DTYPES[entry.dtype], count=count, offset=entry.start - begin
    )
    return flat.view(entry.shape)
