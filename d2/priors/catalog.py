"""`d2 checkpoints`: what every prior needs, what a file is, and fetching one under the user's own
account.

Headers alone are read, so a file of ten gigabytes takes seconds. huggingface_hub is asked for by
`download` alone.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from d2.errors import InputError
from d2.priors import tiny
from d2.priors.camera_prior import CameraPrior
from d2.priors.checkpoint import (
    PUBLISHED,
    Entry,
    check_layout,
    checked_header,
    layout,
    misfits,
    read_folder,
    read_header,
)
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Prior
from d2.priors.published import Published

TINY = {  # that ship, and what takes them
    "autoencoder": "video=tiny multiview=tiny",
    "video": "video=tiny",
    "multiview": "multiview=tiny",
    "camera": "multiview=tiny_camera",
}
MARGIN = 1.01  # of a file's bytes, to be free on the disk before it is fetched
KINDS = {
    "autoencoder": "a first stage",
    "video": "a video prior",
    "multiview": "a multi-view prior",
    "camera": "a multi-view prior of any cameras",
    "cell": "a network of single cells, which has seen 4D pairs",
}


# --- list -----------------------------------------------------------------------------------------


def list_checkpoints(folder: Path) -> str:
    """A table: what each choice of `video=` and `multiview=` needs in `folder`, and whether it is
    there."""
    rows = [("name", "for", "file", "size", "there", "from", "licence")]
    for kind, use in TINY.items():
        path = folder / f"tiny_{kind}.safetensors"
        size = megabytes(path.stat().st_size) if path.is_file() else "-"
        rows.append((f"tiny_{kind}", use, path.name, size, state_of(path), "ships with d2", "MIT"))
    for p in PUBLISHED.values():
        use, source = f"{p.kind}={p.name}", f"Hugging Face, {p.repository}"
        rows.append(
            (p.name, use, p.file, megabytes(p.bytes), state_of(folder / p.file), source, p.licence)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"in {folder}:", *lines])


def state_of(path: Path) -> str:
    """yes, no, or damaged: by its header."""
    if not path.exists():
        return "no"
    try:
        read_header(path)
    except ValueError:
        return "damaged"
    return "yes"


def megabytes(count: int) -> str:
    """1000-based, as hubs and disks count."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# --- verify ---------------------------------------------------------------------------------------


def verify(path: Path) -> str:
    """What a checkpoint is, by its header: name, types, tensors used, and those left out with the
    reason.

    `path` is a safetensors file, or a folder in diffusers' layout. A ValueError of one line says
    what is wrong with it.
    """
    if path.is_dir():
        return report(path, *recognised_folder(path))
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
    if facts.get("format") == tiny.FORMAT:
        return verify_tiny(path, header, facts.get("kind", ""))
    fitting = [p for p in PUBLISHED.values() if not any(misfits(header, p, folder=False))]
    if not fitting:
        nearest = min(
            PUBLISHED.values(), key=lambda p: sum(1 for _ in misfits(header, p, folder=False))
        )
        check_layout(header, nearest, path)
    return report(path, header, fitting)


def recognised_folder(path: Path) -> tuple[dict[str, Entry], list[Published]]:
    """The header of a folder and the published priors that it fits."""
    refusals, fitting, header = [], [], {}
    for p in (p for p in PUBLISHED.values() if p.kind == "video"):
        try:
            header = checked_folder(path, p)
            fitting.append(p)
        except ValueError as error:
            refusals.append(error)
    if not fitting:
        raise InputError(str(refusals[-1])) from refusals[-1]
    return header, fitting


def checked_folder(path: Path, published: Published) -> dict[str, Entry]:
    header = read_folder(path, published)
    check_layout(header, published, path)
    return header


def verify_tiny(path: Path, header: dict[str, Entry], kind: str) -> str:
    """A file of the tiny tier against the network it is for."""
    with torch.device("meta"):
        if kind == "autoencoder":
            network: torch.nn.Module = FirstStage(tiny.AUTOENCODER)
        elif kind == "camera":
            network = CameraPrior(tiny.CAMERA)
        elif kind in KINDS:
            network = Prior(tiny.config_of(kind))
        else:
            raise InputError(
                f"{path}: a tiny file of unknown kind {kind!r}; there are {', '.join(KINDS)}"
            )
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(wanted.keys() | header.keys()):
        have = header[name].shape if name in header else "absent"
        if have != wanted.get(name):
            raise InputError(
                f"{path}: {name} is {have}, tiny_{kind} wants {wanted.get(name, 'no such tensor')};"
                " train it again"
            )
    return "\n".join([f"{path}: tiny_{kind}, {KINDS[kind]}", *contents_of(header, list(header))])


def report(path: Path, header: dict[str, Entry], fitting: list[Published]) -> str:
    """The lines of a file that fits: the first of them alone would do, names apart."""
    published = fitting[0]
    sources, left_out = layout(published, folder=path.is_dir())
    used = list(dict.fromkeys(key for origin in sources.values() for key in origin.keys))
    names = " or ".join(p.name for p in fitting)
    alike = " (one network, trained twice: no header tells them apart)" if len(fitting) > 1 else ""
    reasons = Counter(
        next(part.reason for part in left_out if key.startswith(part.prefix))
        for key in header
        if key not in set(used)
    )
    return "\n".join(
        [
            f"{path}: {names}, {KINDS[published.kind]}{alike}",
            *contents_of(header, used),
            *(f"  left out  {count} tensors: {reason}" for reason, count in reasons.items()),
        ]
    )


def contents_of(header: dict[str, Entry], used: list[str]) -> Iterator[str]:
    types = Counter(header[key].dtype for key in used)
    yield f"  type      {', '.join(types)}"
    yield (
        f"  used      {len(used)} tensors,"
        f" {megabytes(sum(header[key].end - header[key].start for key in used))}"
    )


# --- download -------------------------------------------------------------------------------------


def download(name: str, folder: Path) -> Path:
    """Fetch a published checkpoint into `folder`; a file that is there already and fits is kept.

    The licence has to be accepted by the user's own account, whose token huggingface_hub finds by
    itself. The next call resumes an interrupted download. ValueError: an unknown name, no package,
    no room, no network, a refusal, and what lies there or was fetched but does not fit.
    """
    if name not in PUBLISHED:
        shipped = "; the tiny files ship with d2" if name.startswith("tiny") else ""
        raise InputError(
            f"{name}: no such checkpoint to fetch; choose {' or '.join(PUBLISHED)}{shipped}"
        )
    published = PUBLISHED[name]
    target = folder / published.file
    if target.exists() and state_of(target) == "yes":
        checked_header(target, published)
        return target
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"{name}: huggingface_hub is not installed; in the clone, pip install -e '.[hub]'"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    partial = folder / f".{name}.partial"  # a folder for the hub, which resumes what it finds in it
    there = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free + there < MARGIN * published.bytes:
        sizes = (
            f"{megabytes(published.bytes)} do not fit into {folder}, where {megabytes(free)} are"
            " free"
        )
        raise InputError(f"{name}: {sizes}; make room or name another folder")
    fetched = fetch(hub, published, partial)
    try:
        checked_header(fetched, published)
    except ValueError:
        shutil.rmtree(partial)  # whatever it is, going on with it would not help
        raise
    fetched.replace(target)
    shutil.rmtree(partial)
    return target


def fetch(hub: Any, published: Published, partial: Path) -> Path:
    """Ask the hub; whatever it raises becomes one line with the way out."""
    name, repository, there = published.name, published.repository, published.there
    try:
        return Path(hub.hf_hub_download(repository, there, local_dir=partial))
    # the hub's classes differ between its versions; what they say of themselves does not
    except Exception as error:
        kinds = {kind.__name__ for link in chain(error) for kind in type(link).__mro__}
        status = next((s for s in map(status_of, chain(error)) if s is not None), None)
        if status in (401, 403) or kinds & {"GatedRepoError", "RepositoryNotFoundError"}:
            raise InputError(
                f"{name}: {repository} refused it; accept its licence on Hugging Face with your own"
                " account, then log in by `hf auth login`"
            ) from error
        if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain(error)):
            raise InputError(
                f"{name}: the disk of {partial.parent} is full; make room, then fetch it again,"
                " which resumes it"
            ) from error
        if status is None and kinds & {
            "LocalEntryNotFoundError",
            "ConnectionError",
            "TimeoutError",
            "TransportError",
        }:
            raise InputError(
                f"{name}: the hub cannot be reached; go online, or put {there} of {repository} into"
                f" {partial.parent} by"
                f" hand{f', as {published.file}' if there != published.file else ''}"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(
            f"{name}: {repository} could not be fetched ({reason}); try again later"
        ) from error


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """Of an HTTP answer."""
    return getattr(getattr(error, "response", None), "status_code", None)
