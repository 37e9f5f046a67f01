"""The ground floor of files: writing that leaves nothing half-written, JSON, CSV, hashes,
safetensors, shipped folders.

It imports nothing of d2, and PyTorch only where tensors are read or written. Every writer writes
beside the name and moves the file there when it is complete.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from d2.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LOCK = ".lock"
LOCK_SECONDS = 3.0  # for which a process that is ending may still hold a folder

# --- what ships with d2 ---------------------------------------------------------------------------


def asset(name: str) -> Path:
    """A folder that ships with d2 (conf, experiments, checkpoints): beside the package in a clone,
    else inside it."""
    package = Path(__file__).parent
    for root in (package.parent, package / "_assets"):
        if (root / name / ".d2").exists():
            return root / name
    raise InputError(f"{name}: not found beside or inside {package}; install d2 again")


def absolute(path: str | Path) -> Path:
    """Say where a path lies whatever the working folder becomes; `~` is home unless there is a file
    of that name."""
    path = Path(path)
    return (path if path.exists() else path.expanduser()).absolute()


def given_path(path: str | None) -> Path | None:
    """The same of a path that may not have been given."""
    return absolute(path) if path else None


def all_absolute(paths: str | Sequence[str] | None) -> list[Path]:
    """The same of one path, of several or of none."""
    return [absolute(path) for path in ([paths] if isinstance(paths, str) else paths or ())]


# --- nothing half-written -------------------------------------------------------------------------


def ensure_writable(folder: Path, key: str = "output_dir") -> None:
    """Makes the folder that a key names; an InputError if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # other ranks try too
    except OSError as error:
        raise InputError(
            f"{key}={folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


@contextmanager
def locked(folder: Path, key: str = "output_dir") -> Iterator[None]:
    """Hold the folder that a key names for this process alone; an InputError names who holds it.

    The system lets go of it when the process ends, however it does.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    ensure_writable(folder, key)
    path = folder / LOCK
    file = _lock(path, key, time.monotonic() + LOCK_SECONDS)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # something was written there
            for each in made:
                each.rmdir()


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Let processes that want to fill the same folder in one after another."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(path: Path, key: str, deadline: float) -> TextIO:
    """The open file, once nobody else has locked it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read() or "another process"
                raise InputError(
                    f"{key}={path.parent}: {holder} writes there; wait for it, or give another"
                    f" {key}"
                ) from None
        file.close()
        time.sleep(0.1)


def _umask() -> int:
    """What this process takes from the rights of the files it makes."""
    mask = os.umask(0o022)  # it can only be asked for by setting it
    os.umask(mask)
    return mask


UMASK = _umask()


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, moved onto it at the end; after an error `path` is as it
    was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.chmod(0o666 & ~UMASK)  # safetensors makes files for their owner alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write to, which takes its place at the end; after an error it
    is as it was."""
    partial, old = settle(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():  # a folder that is not empty cannot be replaced in one call
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        settle(folder)


def settle(folder: Path) -> tuple[Path, Path]:
    """Clear up what a killed `staged_folder` left; where nothing took the old one's place, the new
    one does.

    Returns the names that both go by while it works; neither is there.
    """
    partial, old = (
        folder.with_name(f".{folder.name}.partial"),
        folder.with_name(f".{folder.name}.old"),
    )
    if old.exists() and not folder.exists():  # the new one was complete
        os.replace(partial if partial.exists() else old, folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)
    return partial, old


def is_out_of_room(error: OSError) -> bool:
    """Whether a disk is full, or may not be written, so that there is nothing wrong with the
    program."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return error.errno in (*full, errno.EROFS, errno.EACCES, errno.EPERM)


# --- one file -------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    with staged(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON; numbers that JSON does not know (nan, inf) become null."""
    write_text(
        path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, the same bytes for the same tensors and metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with staged(path) as partial:
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(own, partial, dict(metadata))
        except SafetensorError as error:  # which holds the system's error in its text
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Bring the metadata of a safetensors file into order: the library writes them in one of
    chance."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def write_array(path: Path, array: np.ndarray) -> None:
    """`array` as npy."""
    import numpy as np

    with staged(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# --- reading --------------------------------------------------------------------------------------


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the metadata of its header; a ValueError if it
    cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as safetensors ({error}); name another file"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file, without its tensors; a ValueError if it
    cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as safetensors ({error}); name another file"
        ) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read once for as long as it stays as it is: weights have up to 9.6
    GB."""
    known = path.stat()
    return _sha256(path.resolve(), known.st_size, known.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*parts: bytes) -> str:
    """The first twelve digits of the SHA-256 of all parts, one after another."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:12]


def fingerprint(path: Path) -> str:
    """The first twelve digits of the SHA-256 of a file, or of those of a folder's safetensors
    files."""
    if not path.is_dir():
        return sha256_of(path)[:12]
    parts = "".join(fingerprint(file) for file in sorted(path.glob("*/*.safetensors")))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


@functools.cache
def commit() -> str:
    """The commit of the code that ran, with + where it was changed; "" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except OSError:
        return ""


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
