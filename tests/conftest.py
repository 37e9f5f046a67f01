"""What end-to-end tests share: small networks with random weights in the place of the tiny tier, a
short command."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from d2 import cli
from d2.nn.autoencoder import AutoencoderConfig
from d2.priors import tiny
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.prior import Prior, PriorConfig
from d2.sample.matrix_sampler import MatrixSampler

SHORT = [
    "sampler.num_steps=2",
    "matrix.num_views=3",
    "matrix.num_frames=3",
    "baselines=false",
    "pages=false",
    "reconstruct=false",
]


def small(config: PriorConfig) -> PriorConfig:
    """A tiny prior with one level of the fewest channels."""
    unet = dataclasses.replace(
        config.unet, channel_mult=(1,), attention_resolutions=(1,), num_head_channels=16
    )
    return dataclasses.replace(
        config, unet=unet, tower=dataclasses.replace(config.tower, layers=1, mlp_ratio=1.0)
    )


VIDEO, MULTIVIEW, CELL = small(tiny.VIDEO), small(tiny.MULTIVIEW), small(tiny.CELL)
AUTOENCODER = FirstStageConfig(
    AutoencoderConfig(
        in_channels=48,
        out_channels=48,
        ch=32,
        ch_mult=(1,),
        num_res_blocks=1,
        z_channels=tiny.CHANNELS // 4,
        temporal_decoder=False,
        quant_conv=False,
    ),
    unshuffle=4,
    fold=2,
)


def randomized(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """No weight is zero, so that every branch and every condition matters."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (
            p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
        )
    return network


def save_random_weights(
    folder: Path, video: PriorConfig, multiview: PriorConfig, stage: FirstStageConfig
) -> list[str]:
    """Weights files of all three networks; returns the overrides that name them."""
    tiny.save_weights(folder / "video.safetensors", "video", randomized(Prior(video), 1), {})
    tiny.save_weights(
        folder / "multiview.safetensors", "multiview", randomized(Prior(multiview), 2), {}
    )
    tiny.save_weights(
        folder / "autoencoder.safetensors", "autoencoder", randomized(FirstStage(stage), 3), {}
    )
    keys = {
        "video": "video.checkpoint",
        "multiview": "multiview.checkpoint",
        "autoencoder": "autoencoder",
    }
    return [f"{key}={folder / name}.safetensors" for name, key in keys.items()]


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name random weights of the small networks; of use under `small_networks`
    alone."""
    return save_random_weights(tmp_path_factory.mktemp("small"), VIDEO, MULTIVIEW, AUTOENCODER)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name random weights of the tiny tier's own sizes, for other processes."""
    return save_random_weights(
        tmp_path_factory.mktemp("tiny"), tiny.VIDEO, tiny.MULTIVIEW, tiny.AUTOENCODER
    )


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tier is the small networks."""
    monkeypatch.setattr(tiny, "VIDEO", VIDEO)
    monkeypatch.setattr(tiny, "MULTIVIEW", MULTIVIEW)
    monkeypatch.setattr(tiny, "CELL", CELL)
    monkeypatch.setattr(tiny, "AUTOENCODER", AUTOENCODER)


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """No test leaves another number of threads behind."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def d2_sample(small_networks: None, small_weights: list[str], tmp_path: Path) -> Callable[..., int]:
    """`d2 sample` in this process, short and small, into tmp_path / "out" unless told: its exit
    code."""

    def run(*overrides: str) -> int:
        place = (
            f"hydra.sweep.dir={tmp_path / 'out'}"
            if "-m" in overrides
            else f"output_dir={tmp_path / 'out'}"
        )
        own = [place, "trainer=cpu", "overwrite=true"]
        return cli.run(["sample", *small_weights, *SHORT, *own, *overrides])

    return run


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs that sampled, one entry a scene."""
    own, folders = MatrixSampler.sample_all, []

    def sample_all(self: Any, *scene: Any) -> Any:
        folders.append("." if self.folder.name == "out" else self.folder.name)
        return own(self, *scene)

    monkeypatch.setattr(MatrixSampler, "sample_all", sample_all)
    return folders


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, which asks nobody for anything; WebGL is drawn by the processor."""
    executable = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if executable is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--enable-unsafe-swiftshader",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=executable, args=quiet)
        yield chromium
        chromium.close()
