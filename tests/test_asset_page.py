"""The page of a scene, in a browser: what it draws is what the rasteriser draws, and the hand turns
it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_gaussians import WHITE
from PIL import Image
from torch import Tensor

from d2.io import write_video
from d2.matrix import Cameras, ImageMatrix, camera_ring
from d2.recon.capture import capture_matrix
from d2.recon.gaussians import BLUR, ring_pinholes
from d2.recon.motion import cubic_bspline
from d2.recon.page import write_page
from d2.recon.rasterize import rasterize
from d2.recon.scene import MovingGaussians
from d2.report.asset_page import show_asset
from d2.report.markup import render

SIZE, CANVAS = 32, 512
FIGURES = {"train_psnr": 30.0, "train_psnr_masked": 24.0, "train_sharpness": 0.8}


@pytest.fixture(scope="module")
def scene() -> MovingGaussians:
    torch.manual_seed(0)
    scene = MovingGaussians(cubic_bspline, 4, 60, 1)
    for parameter in scene.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    with torch.no_grad():
        scene.quats.normal_()
        scene.log_scales.add_(-2.8)
        scene.sh[:, 0].normal_()
    return scene


@pytest.fixture(scope="module")
def page(scene: MovingGaussians, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = torch.ones(5, 4, 3, SIZE, SIZE)
    pixels[..., 8:24, 8:24] = 0.5
    capture = capture_matrix(ImageMatrix(pixels, camera_ring(5, 0.2), 8.0))
    path = tmp_path_factory.mktemp("asset") / "index.html"
    write_page(path, "<one & only>", scene, capture, FIGURES)
    return path


def canvas_of(page: Any) -> Tensor:  # 3 h w
    uri = page.evaluate("document.getElementById('asset').toDataURL('image/png')")
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.slow
def test_the_page_draws_what_the_rasteriser_draws_and_follows_the_hand(
    browser: Any, page: Path, scene: MovingGaussians
) -> None:
    tab, requests = browser.new_page(), []
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    for azimuth, elevation, time in ((1.0, 0.4, 1.37), (-2.0, -0.7, 3.0)):
        tab.goto("about:blank")
        tab.goto(f"{page.as_uri()}#azimuth={azimuth}&elevation={elevation}&time={time}")
        tab.wait_for_selector("body[data-drawn]")
        angles = Cameras(*(torch.tensor([a], dtype=torch.float64) for a in (azimuth, elevation)), 0)
        cameras = ring_pinholes(angles, CANVAS)._replace(blur=BLUR * (CANVAS / SIZE) ** 2)
        with torch.no_grad():
            twin = rasterize(scene(torch.tensor([time])), cameras, WHITE).colour[0].clamp(0, 1)
        error = (canvas_of(tab) - twin).abs()
        # sixty layers are rounded to eight bits each
        assert error.mean() < 1 / 255 and error.max() < 16 / 255
    still = canvas_of(tab)
    box = tab.locator("#asset").bounding_box()
    tab.mouse.move(box["x"] + 100, box["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 200, box["y"] + 100, steps=4)
    tab.mouse.up()
    tab.wait_for_function("Math.abs(state.azimuth + 2.8) < 0.01")  # 100 pixels, 0.008 each
    tab.evaluate("new Promise(requestAnimationFrame)")
    turned = canvas_of(tab)
    assert not torch.equal(still, turned)
    tab.locator("#time").fill("0.5")
    tab.wait_for_function("state.time === 0.5")
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert not torch.equal(turned, canvas_of(tab))
    assert not complaints and all(url.startswith(("file:", "data:", "about:")) for url in requests)


@pytest.mark.slow
def test_the_slider_is_long_enough_for_a_finger_on_a_phone(browser: Any, page: Path) -> None:
    tab = browser.new_page(viewport={"width": 420, "height": 800})
    tab.goto(f"{page.as_uri()}#time=1.375")
    tab.wait_for_selector("body[data-drawn]")
    assert tab.locator("#time").bounding_box()["width"] > 200
    assert tab.locator("#where").inner_text().endswith("frame 1.38 · 0.17 s")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420


def test_figures_have_units_and_stand_once(page: Path) -> None:
    text = page.read_text()
    assert text.count("30.00") == 1 and "PSNR, dB" in text and "held cells" not in text


@pytest.mark.slow
def test_the_page_of_a_matrix_shows_its_latest_asset_in_motion(
    browser: Any, tmp_path: Path
) -> None:
    (tmp_path / "asset").mkdir()
    for shade in (0.2, 0.8):
        write_video(tmp_path / "asset/spiral.mp4", torch.full((8, 3, 64, 64), shade), 8)
        page = tmp_path / "index.html"
        if not page.exists():
            page.write_text(render("page.html", title="t", facts="f", config="c"))
        show_asset(page, "asset")
    assert page.read_text().count("<video") == 1
    tab = browser.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_function("document.querySelector('video').currentTime > 0")
    assert tab.locator("#asset a").get_attribute("href") == "asset/index.html"
    show_asset(tmp_path / "none.html", "asset")
    assert not (tmp_path / "none.html").exists()
