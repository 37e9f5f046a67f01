"""`d2 checkpoints`: files are known by their headers, and a download arrives whole or not at all,
without a network."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from golden.case import FOLDER
from safetensors.torch import load_file, save_file

from d2.files import asset
from d2.priors import catalog, diffusers_layout, tiny
from d2.priors.catalog import TINY, download, list_checkpoints, verify
from d2.priors.checkpoint import PUBLISHED, layout, wanted
from d2.priors.prior import Prior
from d2.priors.published import Published

ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
Shapes = dict[str, tuple[int, ...]]


def write_sparse(path: Path, shapes: Shapes, dtype: str = "F32") -> Path:
    """A checkpoint of full size whose tensors are a hole in the file: it takes no room."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * ITEMSIZE[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path


def shapes_of(published: Published) -> Shapes:
    """Of the official file: what the networks want, and one tensor of every group that is left
    out."""
    sources, left_out = layout(published, folder=False)
    used = {sources[name].keys[0]: shape for name, shape in wanted(published).items()}
    return used | {part.prefix + "x": (3,) for part in left_out}


def write_published(folder: Path, name: str, dtype: str = "F32") -> Path:
    return write_sparse(folder / PUBLISHED[name].file, shapes_of(PUBLISHED[name]), dtype)


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svd_xt", "sv3d_u", "sv3d_p"])
def test_an_inventory_is_known_for_what_it_is(name: str, tmp_path: Path) -> None:
    inventory = FOLDER / f"{name}.keys.json"
    if not inventory.is_file():
        pytest.skip(f"no inventory {inventory}; set D2_PARITY_DIR")
    keys = json.loads(inventory.read_text())["keys"]
    lines = verify(write_sparse(tmp_path / "some_name.safetensors", keys)).splitlines()
    said = {"svd_xt": "svd or svd_xt, a video prior"}.get(name, f"{name}, a multi-view prior")
    assert lines[0].startswith(f"{tmp_path / 'some_name.safetensors'}: {said}")
    assert lines[1].split() == ["type", "F32"]
    used = int(lines[2].split()[1])
    left_out = {line.split(": ", 1)[1]: int(line.split()[2]) for line in lines[3:]}
    assert left_out == {
        "the text half of CLIP; conditions are pictures": 6,
        "the conditioning encoder only encodes": 138 + 2,
    }
    assert used + sum(left_out.values()) == len(keys)


def test_types_are_told_apart(tmp_path: Path) -> None:
    for dtype, size in (("F32", 9.1), ("BF16", 4.6), ("F16", 4.6)):
        lines = verify(write_published(tmp_path, "sv3d_p", dtype)).splitlines()
        assert lines[1].split() == ["type", dtype]
        assert float(lines[2].split()[3]) == pytest.approx(size, rel=0.05) and lines[2].endswith(
            "GB"
        )


def folder_shapes(published: Published) -> Shapes:
    """Of diffusers' layout: FOLDER/KEY of shapes that make what the networks want."""
    shapes: Shapes = {}
    sources, _ = layout(published, folder=True)
    for name, shape in wanted(published).items():
        keys, make = sources[name]
        if len(keys) == 1:  # as it is, a linear map for a 1x1 convolution, or a transposed matrix
            candidates = (shape, shape[:2], shape[::-1])
            shapes[keys[0]] = next(c for c in candidates if made_shape(make, c) == shape)
        elif keys[1].endswith("quant_conv.weight"):
            shapes |= {
                keys[0]: shape,
                "vae/quant_conv.weight": (8, 8, 1, 1),
                "vae/quant_conv.bias": (8,),
            }
        else:
            shapes |= {key: (shape[0] // 3, *shape[1:]) for key in keys}
    return shapes


def made_shape(make: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(make(torch.empty(shape, device="meta")).shape)
    except (RuntimeError, IndexError):
        return None


@pytest.mark.parametrize(
    ("length", "said"),
    [(14, "svd, a video prior"), (25, "svd_xt, a video prior"), (None, "svd or svd_xt")],
)
def test_a_folder_in_diffusers_layout_is_known_by_its_length(
    length: int | None, said: str, tmp_path: Path
) -> None:
    shapes = folder_shapes(PUBLISHED["svd"])
    for folder, stem in diffusers_layout.FOLDERS.items():
        own = {
            key.removeprefix(f"{folder}/"): shape
            for key, shape in shapes.items()
            if key.startswith(f"{folder}/")
        }
        write_sparse(tmp_path / folder / f"{stem}.fp16.safetensors", own, "F16")
    if length is not None:
        (tmp_path / "unet" / "config.json").write_text(json.dumps({"num_frames": length}))
    lines = verify(tmp_path).splitlines()
    assert lines[0].startswith(f"{tmp_path}: {said}")
    assert lines[1].split() == ["type", "F16"] and len(lines) == 3
    assert int(lines[2].split()[1]) == len(shapes)


@pytest.mark.parametrize("index", ["safetensors.index.json", "safetensors.index.fp16.json"])
def test_a_network_in_shards_is_read_through_its_index(index: str, tmp_path: Path) -> None:
    shapes, places = folder_shapes(PUBLISHED["svd"]), {}
    for folder, stem in diffusers_layout.FOLDERS.items():
        own = {
            key.removeprefix(f"{folder}/"): shape
            for key, shape in shapes.items()
            if key.startswith(f"{folder}/")
        }
        parts = {f"{stem}.safetensors": list(own)}
        if folder == "unet":
            parts = {
                f"{stem}-0000{part + 1}-of-00002.safetensors": list(own)[part::2] for part in (0, 1)
            }
            places = {key: file for file, keys in parts.items() for key in keys}
        for file, keys in parts.items():
            write_sparse(tmp_path / folder / file, {key: own[key] for key in keys}, "F16")
    written = tmp_path / "unet" / f"diffusion_pytorch_model.{index}"
    written.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert int(verify(tmp_path).splitlines()[2].split()[1]) == len(shapes)

    shard = tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    key = next(key for key, file in places.items() if file == shard.name)
    written.write_text(
        json.dumps({"weight_map": places | {key: shard.name.replace("00002-", "00001-")}})
    )
    with pytest.raises(
        ValueError, match=f"{key} is not in .*-00001-of-00002.safetensors; fetch both again$"
    ):
        verify(tmp_path)
    written.write_text(json.dumps({"weight_map": places}))
    shard.unlink()
    with pytest.raises(
        ValueError, match=rf"of its 2 shards {shard.name} is not there; fetch it again$"
    ):
        verify(tmp_path)
    written.write_text("{}")
    with pytest.raises(ValueError, match="not an index of shards; fetch it again$"):
        verify(tmp_path)


@pytest.mark.parametrize("kind", TINY)
def test_a_shipped_file_is_known_and_a_changed_one_refused(kind: str, tmp_path: Path) -> None:
    shipped = asset("checkpoints") / f"tiny_{kind}.safetensors"
    state = load_file(shipped)
    lines = verify(shipped).splitlines()
    assert lines[0].startswith(f"{shipped}: tiny_{kind}, ")
    assert lines[1].split() == ["type", "F16"] and lines[2].split()[1] == str(len(state))
    facts = {"format": "d2-tiny-1", "kind": kind}
    first = min(state)
    for changed in (
        {k: v for k, v in state.items() if k != first},
        state | {first: torch.zeros(7)},
    ):
        save_file(changed, tmp_path / "changed.safetensors", facts)
        with pytest.raises(ValueError, match=rf"^[^\n]*changed\.safetensors: {first} is [^\n]*$"):
            verify(tmp_path / "changed.safetensors")


def test_a_network_of_cells_is_known(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in Prior(tiny.CELL).state_dict().items()}
    save_file(state, tmp_path / "cell.safetensors", {"format": tiny.FORMAT, "kind": "cell"})
    assert (
        verify(tmp_path / "cell.safetensors")
        .splitlines()[0]
        .endswith("single cells, which has seen 4D pairs")
    )


def test_a_file_that_fits_nothing_is_compared_with_the_nearest(tmp_path: Path) -> None:
    shapes = shapes_of(PUBLISHED["sv3d_p"])
    key = "model.diffusion_model.out.2.bias"
    write_sparse(tmp_path / "odd.safetensors", shapes | {key: (5,)})
    with pytest.raises(
        ValueError, match=rf"^[^\n]*odd\.safetensors: not sv3d_p: {key} [^\n]*; get [^\n]*$"
    ):
        verify(tmp_path / "odd.safetensors")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = write_published(tmp_path, "svd_xt")
    with whole.open("r+b") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(ValueError, match=r"^[^\n]*svd_xt\.safetensors: half a download[^\n]*$"):
        verify(whole)
    fp8 = write_published(tmp_path, "sv3d_u", "F8_E4M3")
    with pytest.raises(ValueError, match=r"^[^\n]*sv3d_u\.safetensors: [^\n]*F8_E4M3[^\n]*$"):
        verify(fp8)
    with pytest.raises(ValueError, match=r"^[^\n]*nowhere: no such checkpoint[^\n]*$"):
        verify(tmp_path / "nowhere")


# --- list -----------------------------------------------------------------------------------------


def test_the_list_says_what_is_there(tmp_path: Path) -> None:
    shutil.copy(asset("checkpoints") / "tiny_video.safetensors", tmp_path)
    write_published(tmp_path, "svd_xt")
    with write_published(tmp_path, "sv3d_p").open("r+b") as file:
        file.truncate(10_000_000)
    title, head, *lines = list_checkpoints(tmp_path).splitlines()
    assert str(tmp_path) in title
    starts = [
        head.index(word) for word in ("name", "for", "file", "size", "there", "from", "licence")
    ]
    rows = {line.split()[0]: line for line in lines}
    there = {name: line[starts[4] : starts[5]].strip() for name, line in rows.items()}
    tiers = dict.fromkeys([*(f"tiny_{kind}" for kind in TINY), *PUBLISHED], "no")
    assert there == tiers | {"tiny_video": "yes", "svd_xt": "yes", "sv3d_p": "damaged"}
    for name, published in PUBLISHED.items():
        assert f"{published.kind}={name} " in rows[name]
        assert all(
            fact in rows[name]
            for fact in (published.file, published.repository, published.licence, " GB")
        )


# --- download -------------------------------------------------------------------------------------


class Hub(NamedTuple):
    """A hub without a network: it writes what `make` makes, and tells where it was asked to."""

    asked: list[tuple[str, str]]

    def install(self, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]) -> None:
        def hf_hub_download(repository: str, file: str, *, local_dir: Path) -> str:
            self.asked.append((repository, file))
            local_dir.mkdir(parents=True, exist_ok=True)
            make(local_dir / file)
            return str(local_dir / file)

        hub = SimpleNamespace(hf_hub_download=hf_hub_download)
        monkeypatch.setattr(catalog, "import_module", lambda name: hub)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    room = SimpleNamespace(free=10**11)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    return Hub([])


def raising(error: BaseException) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.with_suffix(".incomplete").write_bytes(b"some of it")
        raise error

    return make


def test_a_download_is_checked_then_put_in_its_place(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"

    def make(path: Path) -> None:
        assert not (folder / "sv3d_p.safetensors").exists()  # it is not there before it is whole
        write_published(path.parent, "sv3d_p")

    hub.install(monkeypatch, make)
    assert download("sv3d_p", folder) == folder / "sv3d_p.safetensors"
    assert hub.asked == [("stabilityai/sv3d", "sv3d_p.safetensors")]
    assert [file.name for file in folder.iterdir()] == ["sv3d_p.safetensors"]
    assert download("sv3d_p", folder) == folder / "sv3d_p.safetensors"
    assert len(hub.asked) == 1  # it was there


def test_a_damaged_file_is_replaced_and_another_model_s_is_not(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.install(monkeypatch, lambda path: write_published(path.parent, "sv3d_u"))
    (tmp_path / "sv3d_u.safetensors").write_bytes(b"half")
    download("sv3d_u", tmp_path)
    verify(tmp_path / "sv3d_u.safetensors")
    shutil.move(write_published(tmp_path / "other", "sv3d_p"), tmp_path / "sv3d_u.safetensors")
    with pytest.raises(ValueError, match=r"^[^\n]*not sv3d_u but sv3d_p[^\n]*$"):
        download("sv3d_u", tmp_path)
    assert len(hub.asked) == 1


def test_what_does_not_fit_never_arrives(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.install(
        monkeypatch, lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")
    )
    with pytest.raises(ValueError, match=r"^[^\n]*Git LFS pointer[^\n]*$"):
        download("svd_xt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def errors() -> list[tuple[str, Callable[[], BaseException], str]]:
    """The real hub's errors, where it is installed: how each arises, and what the user is told."""
    kinds = pytest.importorskip("huggingface_hub.errors")

    def answered(kind: str, status: int) -> BaseException:
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        return getattr(kinds, kind)("refused\nat length", response=response)

    def unlocated(cause: BaseException) -> BaseException:
        error = kinds.LocalEntryNotFoundError("not found\nat length")
        error.__cause__ = cause
        return error

    refused = r"refused it; accept its licence [^\n]*`hf auth login`"
    away = r"cannot be reached; go online, or put svd_xt\.safetensors of stabilityai/[^\n]* by hand"
    return [
        ("gated", lambda: answered("GatedRepoError", 403), refused),
        ("unknown account", lambda: answered("RepositoryNotFoundError", 401), refused),
        ("token refused", lambda: answered("HfHubHTTPError", 401), refused),
        ("refused behind a look-up", lambda: unlocated(answered("HfHubHTTPError", 403)), refused),
        ("switched off", lambda: unlocated(kinds.OfflineModeIsEnabled("offline")), away),
        ("no connection", lambda: unlocated(ConnectionRefusedError("no route")), away),
        ("broken off", lambda: TimeoutError("read timed out"), away),
        (
            "fault of the hub",
            lambda: unlocated(answered("HfHubHTTPError", 503)),
            r"could not be fetched [^\n]*later",
        ),
        (
            "disk full",
            lambda: OSError(errno.ENOSPC, "No space left on device"),
            r"is full; make room[^\n]*",
        ),
    ]


def test_every_refusal_of_the_hub_is_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, error, said in errors():
        hub.install(monkeypatch, raising(error()))
        with pytest.raises(ValueError, match=rf"^svd_xt: [^\n]*{said}$"):
            download("svd_xt", tmp_path)
        assert not (tmp_path / "svd_xt.safetensors").exists(), name
        assert [*tmp_path.rglob("*.incomplete")], name  # to be resumed


def test_refusals_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.install(monkeypatch, raising(AssertionError("asked")))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=9_000_000_000))
    with pytest.raises(
        ValueError,
        match=r"^svd: 9\.56 GB do not fit into [^\n]*where 9\.00 GB are free; make room[^\n]*$",
    ):
        download("svd", tmp_path)
    for name, said in (
        ("sdxl", "choose svd or svd_xt"),
        ("tiny_video", "the tiny files ship with d2"),
    ):
        with pytest.raises(
            ValueError, match=rf"^{name}: no such checkpoint to fetch; [^\n]*{said}[^\n]*$"
        ):
            download(name, tmp_path)

    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^[^\n]*file/sub: cannot be made \([^\n]*\); name another folder$"
    ):
        download("svd", tmp_path / "file" / "sub")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(catalog, "import_module", missing)
    with pytest.raises(
        ValueError,
        match=(
            r"^svd_xt: huggingface_hub is not installed; in the clone, pip install -e '\.\[hub\]'$"
        ),
    ):
        download("svd_xt", tmp_path)
    assert hub.asked == []


def test_the_real_hub_takes_the_call_and_its_offline_switch_is_understood(tmp_path: Path) -> None:
    """A subprocess, for the switch is read on import; nothing is asked."""
    pytest.importorskip("huggingface_hub")
    code = (
        "import shutil, sys, types, socket\n"
        "def refuse(*_, **__): raise AssertionError('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pathlib import Path\n"
        "shutil.disk_usage = lambda folder: types.SimpleNamespace(free=10**11)\n"
        "from d2.priors.catalog import download\n"
        "try: download('svd_xt', Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("svd_xt: the hub cannot be reached; go online"), done.stderr
