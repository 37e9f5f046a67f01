"""Laws of loading published checkpoints, on small networks in the official layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import official
from golden.case import FOLDER, load_engine
from golden.networks import load_first_stage, load_prior
from safetensors.torch import load_file, save_file
from small_camera_prior import UNET
from torch import Tensor, nn

from d2.files import fingerprint
from d2.nn.camera_unet import CameraUNet
from d2.priors import checkpoint, tensor_file
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.checkpoint import (
    AUTOENCODERS,
    PUBLISHED,
    Loaded,
    layout,
    load_pair,
    load_published,
    random_published,
    read_header,
    wanted,
)
from d2.priors.first_stage import FirstStageConfig
from d2.priors.prior import Prior, PriorConfig
from d2.priors.published import Published

ENGINES = {"svd_xt": "tiny_svd", "sv3d_p": "tiny_sv3d_p"}
F32: dict = {"dtype": torch.float32, "device": "cpu"}
Weights = dict[str, Tensor]


def small(name: str) -> Published:
    """A published prior in the sizes of its tiny engine."""
    if not (FOLDER / f"{ENGINES[name]}.json").is_file():
        pytest.skip(f"no engine {ENGINES[name]} in {FOLDER}; set D2_PARITY_DIR")
    engine = load_engine(FOLDER, ENGINES[name])
    stage = FirstStageConfig(
        official.first_stage_config(engine["config"]["params"]["first_stage_config"])
    )
    return replace(PUBLISHED[name], prior=official.prior_config(engine), first_stage=stage)


@pytest.fixture
def svd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """The small SVD, and the small ones are all there are."""
    monkeypatch.setattr(checkpoint, "PUBLISHED", {name: small(name) for name in ENGINES})
    yield small("svd_xt")


@pytest.fixture
def sv3d(svd: Published) -> Published:
    return small("sv3d_p")


def weights_of(published: Published) -> Weights:
    return load_file(FOLDER / f"{ENGINES[published.name]}.safetensors")


def state_of(loaded: Loaded) -> Weights:
    return {
        f"{part}.{key}": tensor
        for part, module in loaded._asdict().items()
        for key, tensor in module.state_dict().items()
    }


def saved(weights: Weights, path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path


def refusal(path: Path, published: Published | None = None) -> str:
    """What a user is told of a file."""
    with pytest.raises(ValueError) as refused:
        _ = read_header(path) if published is None else load_published(path, published, **F32)
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


# ----------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("name", ENGINES)
def test_an_official_file_gives_the_networks_of_the_goldens(name: str) -> None:
    loaded = load_published(FOLDER / f"{ENGINES[name]}.safetensors", small(name), **F32)
    prior, stage = (
        load_prior(FOLDER, ENGINES[name]),
        load_first_stage(FOLDER, ENGINES[name], 0.18215),
    )
    theirs = state_of(Loaded(prior, stage))
    ours = state_of(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not any(p.requires_grad for module in loaded for p in module.parameters())
    assert not any(module.training for module in loaded)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_cast_once_from_what_is_stored(
    svd: Published, tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    weights = {key: tensor.to(stored) for key, tensor in weights_of(svd).items()}
    loaded = state_of(
        load_published(saved(weights, tmp_path / "x.safetensors"), svd, dtype=dtype, device="cpu")
    )
    sources, _ = layout(svd, folder=False)
    for name in wanted(svd):
        (key,) = sources[name].keys
        wide = dtype == torch.float16 and name.startswith(AUTOENCODERS)  # they overflow in float16
        own = torch.float32 if wide else dtype
        assert loaded[name].dtype == own and torch.equal(loaded[name], weights[key].to(own))
    # a rounded scale would shift every latent
    assert loaded["first_stage.scale"].dtype == torch.float32
    assert loaded["first_stage.scale"].tolist() == pytest.approx([0.18215] * 4)


def test_networks_own_their_memory(svd: Published, tmp_path: Path) -> None:
    path = saved(
        {key: tensor.float() for key, tensor in weights_of(svd).items()}, tmp_path / "x.safetensors"
    )
    loaded = load_published(path, svd, **F32)
    before = {name: tensor.clone() for name, tensor in state_of(loaded).items()}
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(bytes(path.stat().st_size - file.tell()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(loaded).items())


def test_memory_holds_one_mapped_tensor_at_a_time(
    svd: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = 0, 0

    class Pages(tensor_file.mmap.mmap):
        def __new__(cls, *args, **options):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *args, **options)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(tensor_file.mmap, "mmap", Pages)
    load_published(FOLDER / "tiny_svd.safetensors", svd, **F32)
    assert (alive, most) == (0, 1)


# ----------------------------------------------------------------------------------- what is shared


def test_a_pair_shares_what_is_equal_and_nothing_else(
    svd: Published, sv3d: Published, tmp_path: Path
) -> None:
    weights, of_sv3d = weights_of(svd), weights_of(sv3d)
    tower = svd.sources["prior.tower."]
    of_sv3d |= {key: tensor for key, tensor in weights.items() if key.startswith(tower)}
    path = saved(of_sv3d, tmp_path / "x.safetensors")
    video = load_published(FOLDER / "tiny_svd.safetensors", svd, **F32)
    multiview = load_published(path, sv3d, **F32, like=video)
    assert multiview.prior.tower is video.prior.tower
    assert (
        multiview.prior.encoder is not video.prior.encoder
        and multiview.prior.unet is not video.prior.unet
    )
    alone = state_of(load_published(path, sv3d, **F32))
    assert all(torch.equal(tensor, alone[name]) for name, tensor in state_of(multiview).items())


def test_one_other_number_and_the_tower_is_not_shared(svd: Published, tmp_path: Path) -> None:
    weights = weights_of(svd)
    key = f"{svd.sources['prior.tower.']}ln_post.bias"
    weights[key] = weights[key] + torch.nn.functional.one_hot(torch.tensor(3), len(weights[key]))
    first = load_published(FOLDER / "tiny_svd.safetensors", svd, **F32)
    second = load_published(saved(weights, tmp_path / "x.safetensors"), svd, **F32, like=first)
    assert isinstance(first.prior, Prior) and isinstance(second.prior, Prior)
    assert second.prior.tower is not first.prior.tower
    biases = [prior.tower.get_parameter("ln_post.bias") for prior in (first.prior, second.prior)]
    assert biases[0][3] != biases[1][3]
    # no second copy of the rest
    assert second.prior.tower.conv1.weight is first.prior.tower.conv1.weight
    assert second.prior.encoder is first.prior.encoder


def test_a_prior_of_any_cameras_takes_tower_and_decoder_from_the_video_priors_file(
    svd: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CameraPriorConfig(
        replace(UNET, context_dim=svd.prior.tower.embed_dim), svd.prior.tower, "table"
    )
    seva = replace(PUBLISHED["seva"], prior=config)
    monkeypatch.setitem(checkpoint.PUBLISHED, "seva", seva)
    weights = {
        name: torch.randn(shape).half()
        for name, shape in shapes_of(CameraUNet(config.unet)).items()
    }
    files = FOLDER / "tiny_svd.safetensors", saved(weights, tmp_path / "seva.safetensors")
    first, second = load_pair((svd, files[0]), (seva, files[1]), **F32)
    assert second.prior.tower is first.prior.tower
    assert all(torch.equal(p, weights[name]) for name, p in second.prior.unet.named_parameters())
    of_images, prefix = weights_of(svd), svd.sources["prior.encoder."]
    state = second.first_stage.autoencoder.state_dict()
    assert {name.partition(".")[0] for name in state} == {"decoder", "post_quant_conv"}
    assert all(
        torch.equal(tensor, of_images[prefix + name].float()) for name, tensor in state.items()
    )
    assert second.first_stage.scale.tolist() == first.first_stage.scale.tolist()
    key = "out.2.bias"
    bad = saved(
        {name: w for name, w in weights.items() if name != key}, tmp_path / "bad.safetensors"
    )
    said = rf"^[^\n]*bad.safetensors: not seva: {key} is missing; get modelv1.1.safetensors[^\n]*$"
    with pytest.raises(ValueError, match=said):
        load_pair((svd, files[0]), (seva, bad), **F32)
    said = r"^[^\n]*: not svd_xt but seva, a multi-view prior; give it as multiview[^\n]*$"
    with pytest.raises(ValueError, match=said):
        load_pair((svd, files[1]), (seva, files[1]), **F32)


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def test_what_is_shared_moves_together(svd: Published) -> None:
    first = random_published(svd, seed=0, **F32)
    second = random_published(svd, seed=0, **F32, like=first)
    first.prior.to(torch.float64)
    assert second.prior.unet.out[2].weight.dtype == torch.float64


@pytest.mark.parametrize("random", [False, True])
def test_load_pair_shares_as_loading_one_after_the_other(
    svd: Published, sv3d: Published, random: bool
) -> None:
    files = (
        ["random"] * 2
        if random
        else [FOLDER / f"{ENGINES[p.name]}.safetensors" for p in (svd, sv3d)]
    )
    video, multiview = load_pair((svd, files[0]), (sv3d, files[1]), **F32)
    # the engines have towers of their own
    assert (multiview.prior.tower is video.prior.tower) == random
    own = (
        random_published(sv3d, seed=0, **F32)
        if random
        else load_published(Path(files[1]), sv3d, **F32)
    )
    assert all(
        torch.equal(tensor, state_of(multiview)[name]) for name, tensor in state_of(own).items()
    )


def test_a_pair_with_a_bad_second_file_reads_no_weights(
    tmp_path: Path, svd: Published, sv3d: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "mapped", lambda entry: pytest.fail("a weight was read"))
    with pytest.raises(ValueError, match="x.safetensors: no such checkpoint"):
        load_pair((svd, FOLDER / "tiny_svd.safetensors"), (sv3d, tmp_path / "x.safetensors"), **F32)


def test_a_fingerprint_is_the_hash_of_the_bytes(tmp_path: Path) -> None:
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.safetensors").write_bytes(b"abc")
    known = "ba7816bf8f01"  # the beginning of FIPS 180's example
    assert fingerprint(tmp_path / "vae" / "x.safetensors") == known
    whole = fingerprint(tmp_path)
    (tmp_path / "vae" / "x.safetensors").write_bytes(b"abd")
    assert len(whole) == 12 and fingerprint(tmp_path) != whole


# ----------------------------------------------------------------------------------- random weights


def test_random_weights_depend_on_seed_and_name_alone(svd: Published, sv3d: Published) -> None:
    first = state_of(random_published(svd, seed=1, **F32))
    half = state_of(random_published(svd, seed=1, dtype=torch.bfloat16, device="cpu"))
    other = state_of(random_published(svd, seed=2, **F32))
    for name in wanted(svd):
        assert torch.equal(first[name].bfloat16(), half[name])
        assert not torch.equal(first[name], other[name])
        assert first[name].abs().max() > 0, f"{name} is zero"


def test_a_random_pair_shares_tower_and_encoder_alone(svd: Published, sv3d: Published) -> None:
    video = random_published(svd, seed=0, **F32)
    multiview = random_published(sv3d, seed=0, **F32, like=video)
    assert (
        multiview.prior.tower is video.prior.tower
        and multiview.prior.encoder is video.prior.encoder
    )
    unets = (dict(loaded.prior.unet.named_parameters()) for loaded in (video, multiview))
    assert not {id(p) for p in next(unets).values()} & {id(p) for p in next(unets).values()}


def test_random_networks_give_finite_numbers_of_sensible_size(svd: Published) -> None:
    prior, stage = random_published(svd, seed=0, **F32)
    assert isinstance(prior, Prior) and isinstance(svd.prior, PriorConfig)
    x = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scalars = {name: torch.full((1, 3), 0.5) for name, _ in svd.prior.scalars}
    condition, _ = prior.condition(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), scalars, 3)
    denoised = prior(x, torch.ones(1, 3), condition)
    assert 0.1 < denoised.std() < 10
    assert 0.1 < stage.decode(denoised[0], num_frames=3).std() < 100


# ----------------------------------------------------------------------------------------- refusals


def test_a_missing_file(tmp_path: Path, svd: Published) -> None:
    assert refusal(tmp_path / "x.safetensors", svd) == "no such checkpoint"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.safetensors",
            b"<!doctype html><title>Log in</title>",
            "not a safetensors file; give the .safetensors",
        ),
        (
            "x.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a Git LFS pointer in the place",
        ),
        (
            "x.ckpt",
            b"anything but a header",
            "a pickle, which can run code and is never loaded; give the .safetensors",
        ),
        ("x.safetensors", b"", "half a download: its 0 bytes end before the tensors"),
        (
            "x.safetensors",
            (900).to_bytes(8, "little") + b'{"a": ',
            "half a download: its 14 bytes end before",
        ),
        (
            "x.safetensors",
            (4).to_bytes(8, "little") + b"[1,]",
            "not a safetensors file, its header is no table",
        ),
        (
            "x.safetensors",
            (7).to_bytes(8, "little") + b'{"a":1}',
            "not a safetensors file, its header is no table",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint(
    tmp_path: Path, svd: Published, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name, svd).startswith(said)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_by_another_name(tmp_path: Path, svd: Published, legacy: bool) -> None:
    torch.save(
        {"a": torch.zeros(3)}, tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy
    )
    assert refusal(tmp_path / "x.safetensors", svd).startswith(
        "a pickle, which can run code and is never loaded"
    )


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_half_a_download(tmp_path: Path, svd: Published, share: float) -> None:
    content = (FOLDER / "tiny_svd.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path, svd).startswith("half a download: ")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_fp8_file(tmp_path: Path, svd: Published, dtype: torch.dtype) -> None:
    weights = weights_of(svd)
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weights[key] = weights[key].to(dtype)
    kind = str(dtype).removeprefix("torch.float8_").upper()
    kind = {"E4M3FN": "F8_E4M3"}.get(kind, f"F8_{kind}")
    said = f"{key} is {kind}; give a file in F32, F16, BF16, not a quantised one"
    assert refusal(saved(weights, tmp_path / "x.safetensors"), svd) == said


def test_offsets_that_disagree_with_the_shape(tmp_path: Path, svd: Published) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert refusal(tmp_path / "x.safetensors", svd).startswith(
        "damaged: a has not the bytes of its shape (3,)"
    )


def test_sv3d_as_the_video_prior(svd: Published, sv3d: Published) -> None:
    path = FOLDER / "tiny_sv3d_p.safetensors"
    assert refusal(path, svd).startswith(
        "not svd_xt but sv3d_p, a multi-view prior; give it as multiview.checkpoint ("
    )


def test_a_file_of_other_sizes() -> None:
    small("svd_xt")  # skips where the engine is not at hand
    said = refusal(FOLDER / "tiny_svd.safetensors", PUBLISHED["svd_xt"])
    assert said.startswith(
        "not svd_xt: model.diffusion_model.time_embed.0.weight makes (128, 32), wanted (1280, 320)"
    )


def test_shapes_are_checked_before_a_weight_is_read(
    tmp_path: Path, svd: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(svd)
    weights["extra"] = torch.zeros(1)
    monkeypatch.setattr(checkpoint, "mapped", lambda entry: pytest.fail("a weight was read"))
    said = refusal(saved(weights, tmp_path / "x.safetensors"), svd)
    assert said.startswith("not svd_xt: extra is unknown; get svd_xt.safetensors from stabilityai/")


def test_what_is_left_out_may_be_missing(tmp_path: Path, svd: Published) -> None:
    over = tuple(part.prefix for part in svd.left_out)
    weights = {key: tensor for key, tensor in weights_of(svd).items() if not key.startswith(over)}
    load_published(saved(weights, tmp_path / "x.safetensors"), svd, **F32)


def test_a_folder_is_svds_alone(tmp_path: Path, sv3d: Published) -> None:
    assert refusal(tmp_path, sv3d) == "a folder; sv3d_p is one file, sv3d_p.safetensors"
