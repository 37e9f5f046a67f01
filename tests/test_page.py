"""The offline pages: what is embedded is what was given, and the hand finds every cell of it."""

from __future__ import annotations

import base64
import io
import json
import os
import re

import pytest
import torch
from PIL import Image

from d2.cameras import frusta
from d2.matrix import camera_ring, rig_of
from d2.report.page import Card, Table, thumbnail, write_index_page, write_scene_page

V, F, SIZE = 5, 4, 24
INPUT_VIEW = V - 1


def flat_matrix(num_views=V, num_frames=F, height=SIZE, width=SIZE, blue=0):
    """Each cell in one colour of its own: red tells the view, green the frame."""
    matrix = torch.empty(num_views, num_frames, 3, height, width)
    for view in range(num_views):
        for frame in range(num_frames):
            matrix[view, frame] = torch.tensor(colour(view, frame, blue)).view(3, 1, 1) / 255
    return matrix


def colour(view, frame, blue=0):
    return [20 + 10 * (view % 20), 30 + 10 * (frame % 20), blue]


def write(path, *, sample=None, **changes):
    sample = flat_matrix() if sample is None else sample
    num_views = sample.shape[0]
    arguments = {
        "title": "one scene",
        "sample": sample,
        "others": {},
        "input_view": num_views - 1,
        "azimuth_deg": [360 * (view + 1) / num_views for view in range(num_views)],
        "elevation_deg": [10.0] * num_views,
        "frusta": frusta(rig_of(camera_ring(num_views, 0.2)), 0.3).tolist(),
        "fps": 10.0,
        "metrics": {"psnr": 16.021, "sharpness": 0.9, "retrieval_view": 0.75},
        "baselines": [
            {"method": "show the input", "psnr": 13.2, "sharpness": 1.0, "retrieval_view": 0.125}
        ],
        "config": "seed: 1\n",
    }
    write_scene_page(path, **(arguments | changes))
    return path.read_text(encoding="utf-8")


def embedded(page, name):
    """The JSON of a page's data element."""
    found = re.search(
        rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL
    )
    assert found
    return json.loads(found[1])


def cell(atlas, view, frame):
    """One cell, cut out of its atlas: h w 3, uint8."""
    image = Image.open(io.BytesIO(base64.b64decode(atlas["images"][view].split(",")[1])))
    left = frame % atlas["columns"] * atlas["pitch"][0]
    top = frame // atlas["columns"] * atlas["pitch"][1]
    box = image.crop((left, top, left + atlas["width"], top + atlas["height"]))
    return torch.frombuffer(bytearray(box.tobytes()), dtype=torch.uint8).view(
        atlas["height"], atlas["width"], 3
    )


# --- what is embedded -----------------------------------------------------------------------------


def test_small_cells_are_embedded_without_loss(tmp_path):
    sample = torch.rand(3, 4, 3, 20, 28)
    atlas = embedded(write(tmp_path / "page.html", sample=sample), "scene")["sample"]
    for view in range(3):
        for frame in range(4):
            error = cell(atlas, view, frame).permute(2, 0, 1) / 255 - sample[view, frame]
            assert error.abs().max() <= 0.5 / 255 + 1e-6


def test_large_cells_shrink_wrap_and_keep_their_colours(tmp_path):
    sample = flat_matrix(num_views=2, num_frames=23, height=402, width=290)
    atlas = embedded(write(tmp_path / "page.html", sample=sample), "scene")["sample"]
    assert (atlas["width"], atlas["height"]) == (185, 256)
    assert atlas["images"][0].startswith("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(atlas["images"][0].split(",")[1])))
    assert max(image.size) <= 4096 and atlas["columns"] < 23
    for view in range(2):
        for frame in range(23):  # every pixel to its edge: no neighbour bleeds in
            error = cell(atlas, view, frame).int() - torch.tensor(colour(view, frame))
            assert error.abs().max() <= 3


def test_shrunk_cells_are_said_to_be_shrunk(tmp_path):
    small = write(tmp_path / "page.html")
    large = write(tmp_path / "page.html", sample=flat_matrix(2, 2, 300, 300))
    assert (
        "24 × 24 pixels" in small
        and "shown at" not in small
        and "JPEG" not in small.split("<main>")[1][:400]
    )
    assert (
        "300 × 300 pixels" in large
        and "shown at 256 × 256" in large
        and "JPEG, quality 92" in large
    )


def test_the_thumbnail_is_one_turn_while_the_clip_runs_once(tmp_path):
    sample = flat_matrix(num_views=4, num_frames=8)
    cards = [Card("a", "a/index.html", thumbnail(sample)), Card("b", "b/index.html", None)]
    write_index_page(tmp_path / "index.html", title="run", facts="", cards=cards, config="")
    atlas, nothing = embedded((tmp_path / "index.html").read_text(), "thumbnails")
    assert nothing is None
    assert [cell(atlas, 0, step)[0, 0].tolist() for step in range(4)] == [
        colour(step, 2 * step) for step in range(4)
    ]


# --- what is written ------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>{{config}}{% block body %}\"'&"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;{{config}}{% block body %}&#34;&#39;&amp;"


def test_text_is_escaped_and_never_filled_again(tmp_path):
    scene = write(
        tmp_path / "page.html",
        title=EVIL,
        metrics={EVIL: 1.0},
        baselines=[{EVIL: EVIL}],
        config=EVIL,
    )
    card, rows = Card(EVIL, EVIL, None), [{EVIL: EVIL}]
    table = Table(EVIL, EVIL, rows, hrefs=[EVIL])
    write_index_page(
        tmp_path / "index.html", title=EVIL, facts=EVIL, cards=[card], tables=[table], config=EVIL
    )
    for page, times in (scene, 6), ((tmp_path / "index.html").read_text(), 9):
        assert "alert(1)</script>" not in page
        assert page.count(ESCAPED) == times


def test_tables_show_every_number_given(tmp_path):
    page = write(
        tmp_path / "page.html",
        metrics={"psnr": 16.021, "ssim": 0.8312, "count": 7, "lost": float("nan")},
    )
    text = re.sub(r"<[^>]+>", " ", page.split("</header>")[1])
    for shown in (
        "16.02",
        "0.831",
        "7",
        "–",
        "this sample",
        "show the input",
        "13.20",
        "0.125",
        "seed: 1",
    ):
        assert shown in text
    bare = write(tmp_path / "page.html", metrics={}, baselines=[])
    assert not re.search("Metrics|Baselines", bare.split("</header>")[1])


def test_pages_ask_the_network_for_nothing(tmp_path):
    scene = write(tmp_path / "page.html")
    cards = [Card("a", "a/index.html", thumbnail(flat_matrix()))]
    tables = [Table("Scenes", "", [{"scene": "a"}], hrefs=["a/index.html"])]
    write_index_page(
        tmp_path / "index.html", title="run", facts="", cards=cards, tables=tables, config=""
    )
    for page in scene, (tmp_path / "index.html").read_text():
        page = re.sub(r"data:image/[^\"]*", "", page)
        assert not re.search(r"https?:|//\w+\.\w|@import|url\(", page)
        assert re.findall(r'(?:src|href)="([^"]*)"', page) in (
            ["data:,"],
            ["data:,", "a/index.html", "a/index.html"],
        )


def test_an_old_page_outlives_a_failed_write(tmp_path, monkeypatch):
    before = write(tmp_path / "page.html")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "page.html", title="another")
    assert (tmp_path / "page.html").read_text() == before
    assert os.listdir(tmp_path) == ["page.html"]


# --- by hand, in a browser ------------------------------------------------------------------------


@pytest.fixture
def visit(browser):
    """visit(path) -> the page, open and drawn; whatever it does, it must log no error and load
    nothing from outside."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    complaints, requests = [], []

    def visit(path):
        page = context.new_page()
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if page.locator("#viewer").count():
            page.wait_for_selector("#viewer[aria-busy=false]")
        return page

    yield visit
    context.close()
    assert complaints == []
    assert requests and all(url.startswith(("file:", "data:")) for url in requests)


def centre(page, canvas="#sample"):
    """The colour in the middle of a canvas."""
    script = (
        "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1,"
        " 1).data].slice(0, 3)"
    )
    return page.locator(canvas).evaluate(script)


def drag(page, across=0.0, up=0.0, canvas="#sample"):
    """Drag from the middle of the canvas, in pixels."""
    box = page.locator(canvas).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y - up, steps=6)
    page.mouse.up()


def pixels_a_cell(page, cells, side, canvas="#sample"):
    return min(page.locator(canvas).bounding_box()[side] / cells, 48)


def test_a_drag_across_turns_the_scene_and_a_drag_up_runs_the_time(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    assert centre(page) == colour(INPUT_VIEW, 0)
    dx, dy = pixels_a_cell(page, V, "width"), pixels_a_cell(page, F, "height")
    drag(page, across=2 * dx)  # the scene follows the hand: the camera goes clockwise
    assert centre(page) == colour(INPUT_VIEW - 2, 0)
    drag(page, across=-3 * dx)  # and round past the input view
    assert centre(page) == colour(0, 0)
    drag(page, up=2 * dy)
    assert centre(page) == colour(0, 2)
    drag(page, up=-9 * dy)  # time ends at its ends
    assert centre(page) == colour(0, 0)
    drag(page, across=-dx, up=dy)
    assert centre(page) == colour(1, 1)
    assert page.locator("#azimuth").inner_text() == "144.0°"
    assert page.locator("#time").inner_text() == "0.10 s"


def test_touch_drags_as_the_mouse_does(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    box = page.locator("#sample").bounding_box()
    session = page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    step = pixels_a_cell(page, V, "width")
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x - step, "y": y}]),
        ("touchMove", [{"x": x - 2 * step, "y": y}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert centre(page) == colour(1, 0)


def test_keys_sliders_and_map_find_the_cell(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert centre(page) == colour(0, 1)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert centre(page) == colour(V - 2, 0)
    page.locator("#view").fill("1")
    page.locator("#frame").fill("3")
    assert centre(page) == colour(1, 3)
    assert (
        page.locator("#view").get_attribute("aria-valuetext")
        == "view 2 of 5, azimuth 144.0°, elevation 10.0°"
    )
    for view, frame in (0, 0), (2, 1), (V - 1, F - 1):
        box = page.locator("#map").bounding_box()
        place = {"x": (frame + 0.5) * box["width"] / F, "y": (view + 0.5) * box["height"] / V}
        page.locator("#map").click(position=place)
        assert centre(page) == colour(view, frame)
        box, mark = page.locator("#map").bounding_box(), page.locator("#map-mark").bounding_box()
        assert mark["x"] == pytest.approx(box["x"] + frame * box["width"] / F, abs=1)
        assert mark["y"] == pytest.approx(box["y"] + view * box["height"] / V, abs=1)


def test_the_map_shows_every_cell(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    script = """(c, [V, F, v, f]) => [...c.getContext("2d").getImageData(
        (f + .5) * c.width / F, (v + .5) * c.height / V, 1, 1).data].slice(0, 3)"""
    seen = [
        [page.locator("#map-canvas").evaluate(script, [V, F, v, f]) for f in range(F)]
        for v in range(V)
    ]
    assert seen == [[colour(v, f) for f in range(F)] for v in range(V)]


@pytest.mark.parametrize(
    ("button", "moves"),
    [("#play-orbit", {"view"}), ("#play-time", {"frame"}), ("#play-both", {"view", "frame"})],
)
def test_play_moves_its_own_axis_until_pressed_again(visit, tmp_path, button, moves):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    page.locator("#speed").select_option("4")
    page.locator(button).click()
    assert page.locator(button).get_attribute("aria-pressed") == "true"
    start = {"view": str(INPUT_VIEW), "frame": "0"}
    for axis in moves:
        page.wait_for_function(f"document.getElementById('{axis}').value !== '{start[axis]}'")
    page.locator(button).click()
    assert page.locator(button).get_attribute("aria-pressed") == "false"
    at = {axis: page.locator(f"#{axis}").input_value() for axis in start}
    assert all(at[axis] == start[axis] for axis in start.keys() - moves)
    assert centre(page) == colour(int(at["view"]), int(at["frame"]))
    page.wait_for_timeout(300)  # at this speed, 12 frames and 2 views
    assert {axis: page.locator(f"#{axis}").input_value() for axis in start} == at


def test_a_drag_across_takes_the_orbit_over_while_time_runs_on(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    page.locator("#play-both").click()
    drag(page, across=2 * pixels_a_cell(page, V, "width"))
    assert page.locator("#play-time").get_attribute("aria-pressed") == "true"
    view, frame = page.locator("#view").input_value(), page.locator("#frame").input_value()
    page.wait_for_function(f"document.getElementById('frame').value !== '{frame}'")
    assert page.locator("#view").input_value() == view


def test_truth_and_difference_stand_beside_the_sample(visit, tmp_path):
    write(tmp_path / "page.html", others={"Truth": flat_matrix(blue=50) + 5 / 255})
    page = visit(tmp_path / "page.html")
    red, green, _ = colour(INPUT_VIEW, 0)
    assert [centre(page, name) for name in ("#sample", "#other")] == [
        [red, green, 0],
        [red + 5, green + 5, 55],
    ]
    assert centre(page, "#difference") == [5, 5, 55]
    page.locator("#gain").select_option("8")
    assert centre(page, "#difference") == [40, 40, 255]
    assert "× 8" in page.locator("#difference-caption").inner_text()
    page.keyboard.press("Tab")  # off the select: the arrows are the viewer's again
    page.locator("#panels").focus()
    page.keyboard.press("ArrowRight")
    assert centre(page, "#other") == [25, 35, 55]
    for choice in "sample", "other", "difference":
        page.locator(f"#compare input[value={choice}]").check()
        shown = [
            name
            for name in ("sample", "other", "difference")
            if page.locator(f"#{name}").is_visible()
        ]
        assert shown == [choice]


def test_what_stands_beside_the_sample_is_a_choice(visit, tmp_path):
    write(
        tmp_path / "page.html",
        others={"Truth": flat_matrix(), "Columns alone": flat_matrix(blue=90)},
    )
    page = visit(tmp_path / "page.html")
    assert page.locator("#other-caption").inner_text() == "Truth"
    page.locator("#against").select_option("Columns alone")
    assert page.locator("#other-caption").inner_text() == "Columns alone"
    assert centre(page, "#other")[2] == centre(page, "#difference")[2] == 90


def test_without_truth_there_is_the_sample_alone(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    assert page.locator("#sample").is_visible()
    for name in "#other", "#difference", "#compare", "#gain":
        assert not page.locator(name).is_visible()


def test_crisp_pixels_are_a_choice(visit, tmp_path):
    write(tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    rendering = "c => getComputedStyle(c).imageRendering"
    assert page.locator("#sample").evaluate(rendering) == "auto"
    page.locator("#crisp").check()
    assert page.locator("#sample").evaluate(rendering) == "pixelated"


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1)])
def test_a_matrix_of_one_row_or_column_still_works(visit, tmp_path, shape):
    write(tmp_path / "page.html", sample=flat_matrix(*shape))
    page = visit(tmp_path / "page.html")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert centre(page) == colour(0, 1 % shape[1])
    assert page.locator("#play-both").is_disabled()


def test_cameras_stand_in_space_and_lead_to_their_views(visit, tmp_path):
    write(tmp_path / "index.html")
    page = visit(tmp_path / "index.html")
    shapes = page.locator("#space .camera")
    marked = (
        "[...document.querySelectorAll('#space .camera')].map(c => +c.classList.contains('here'))"
    )
    here = page.evaluate(marked)
    assert here == [0] * (shapes.count() - 1) + [1]  # the input's
    drawn = shapes.first.get_attribute("d")
    shapes.first.dispatch_event("click")
    assert page.input_value("#view") == "0"
    box = page.locator("#space").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 40)
    page.mouse.up()
    assert shapes.first.get_attribute("d") != drawn


def test_large_cells_wrap_in_the_browser_as_in_the_file(visit, tmp_path):
    write(tmp_path / "page.html", sample=flat_matrix(2, 19, 130, 300))
    page = visit(tmp_path / "page.html")
    for frame in 0, 15, 16, 18:
        page.locator("#frame").fill(str(frame))
        assert centre(page) == pytest.approx(colour(1, frame), abs=3)


def test_nothing_runs_out_of_the_window(visit, tmp_path):
    row = {"method": "a method of a rather long name", **{f"metric_{i}": 0.5 for i in range(14)}}
    write(
        tmp_path / "page.html",
        others={"Truth": flat_matrix()},
        baselines=[row],
        config="key: " + "x" * 400,
    )
    cards = [Card(f"scene_{i}" * 6, "a/index.html", thumbnail(flat_matrix())) for i in range(3)]
    parts = {"cards": cards, "tables": [Table("Summary", "note " * 40, [row])]}
    write_index_page(tmp_path / "index.html", title="run" * 60, facts="", **parts, config="x" * 400)
    for name in "page.html", "index.html":
        page = visit(tmp_path / name)
        for width in 360, 390, 768, 1280:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_hostile_title_is_only_a_title(visit, tmp_path):
    write(tmp_path / "page.html", title=EVIL, config=EVIL)
    page = visit(tmp_path / "page.html")
    assert page.title() == EVIL
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("pre").text_content() == EVIL


def test_the_index_orbits_and_leads_to_the_scenes(visit, tmp_path):
    name = "a scene & its #1?"
    (tmp_path / name).mkdir()
    write(tmp_path / name / "index.html", title="the scene")
    cards = [
        Card(name, f"{name}/index.html", thumbnail(flat_matrix())),
        Card("no picture", "none/index.html", None),
    ]
    write_index_page(tmp_path / "index.html", title="run", facts="", cards=cards, config="")
    page = visit(tmp_path / "index.html")
    first = "#cards li:first-child canvas"
    page.wait_for_function(f"document.querySelector('{first}').width > 1")
    seen = set()
    for _ in range(40):
        seen.add(tuple(centre(page, first)))
        page.wait_for_timeout(50)
    assert len(seen) >= 3 and seen <= {tuple(colour(v, v * F // V)) for v in range(V)}
    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-pressed") == "false"
    page.locator("#cards a").first.click()
    page.wait_for_selector("#viewer[aria-busy=false]")
    assert page.title() == "the scene"
