"""What a user can mend is refused with exit code 2 and one line on stderr, before anything is
written."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from test_rigs import written

from d2 import cli
from d2.cli import complain
from d2.config import help as pages
from d2.config.command_line import composed, readable, values_in_turn
from d2.matrix import camera_ring
from d2.sample import matrix_sampler

Run = Callable[..., int]
Break = Callable[[Path], None]
SCRIPT = Path(sys.executable).with_name("d2")


def disc(size: tuple[int, int] = (32, 32), alpha: int = 255) -> Image.Image:
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 20, 20), fill=(200, 30, 30, alpha))
    return image


def write_clip(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    for frame in range(count):
        disc().save(folder / f"{frame}.png")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A good folder of four frames."""
    return write_clip(tmp_path / "clip")


@pytest.fixture
def refused(
    d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs `d2 sample` with overrides that must be refused; returns what was said."""

    def run(*overrides: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert d2_sample(*overrides) == 2
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return said(capfd)

    return run


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, and nothing on stdout."""
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("d2: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


# --- the user's frames ----------------------------------------------------------------------------


def remove_all(clip: Path) -> None:
    for file in clip.iterdir():
        file.unlink()


def text_named_png(clip: Path) -> None:
    (clip / "1.png").write_text("not a picture\n")


def truncate(clip: Path) -> None:
    whole = (clip / "1.png").read_bytes()
    (clip / "1.png").write_bytes(whole[: len(whole) // 2])


def other_size(clip: Path) -> None:
    disc((30, 32)).save(clip / "1.png")


def all_transparent(clip: Path) -> None:
    disc(alpha=0).save(clip / "1.png")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove_all, "the folder is empty"),
        (lambda clip: (clip / "1.png").unlink(), "missing frame 1"),
        (lambda clip: (clip / "2.png").rename(clip / "12.png"), "missing frame 2, 4"),
        (lambda clip: [(clip / f"{i}.png").unlink() for i in (2, 3)], "2 frames, 3 needed"),
        (other_size, "mixed sizes"),
        (truncate, "1.png: cannot be decoded"),
        (text_named_png, "1.png: cannot be decoded"),
        (all_transparent, "1.png is all transparent"),
    ],
    ids=["empty", "missing", "gap", "too-few", "mixed-sizes", "truncated", "text", "transparent"],
)
def test_a_bad_clip_is_refused(
    spoil: Break, says: str, clip: Path, refused: Callable[..., str]
) -> None:
    spoil(clip)
    line = refused("scenes=folder", f"scenes.path={clip}")
    assert says in line and str(clip) in line


def test_the_same_clip_unspoilt_is_taken(clip: Path, d2_sample: Run) -> None:
    assert d2_sample("scenes=folder", f"scenes.path={clip}") == 0


def test_a_path_that_is_not_there_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no such file or folder" in refused(
        "scenes=folder", f"scenes.path={tmp_path / 'nosuch'}"
    )


def test_one_broken_scene_of_several_is_left_out(
    tmp_path: Path, d2_sample: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_clip(tmp_path / "clips" / name)
    truncate(tmp_path / "clips" / "b")
    assert d2_sample("scenes=folder", f"scenes.path={tmp_path / 'clips'}") == 3
    err = capfd.readouterr().err
    ours = [line for line in err.splitlines() if line.startswith("d2: ")]
    assert len(ours) == 1 and str(tmp_path / "clips" / "b" / "1.png") in ours[0]
    written = tmp_path / "out"
    assert sorted(p.parent.name for p in written.glob("*/matrix.safetensors")) == ["a", "c"]
    assert (written / "config.yaml").exists() and not (written / "b").exists()


def test_when_all_scenes_are_broken_nothing_is_written(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name in ("a", "b"):
        truncate(write_clip(tmp_path / "clips" / name))
    assert "cannot be decoded" in refused("scenes=folder", f"scenes.path={tmp_path / 'clips'}")


def test_a_first_scene_beyond_the_last_is_refused(clip: Path, refused: Callable[..., str]) -> None:
    assert "scenes.first=1" in refused("scenes=folder", f"scenes.path={clip}", "scenes.first=1")


# --- cameras --------------------------------------------------------------------------------------


def in_one_place(table: dict[str, Any]) -> None:
    for frame in table["frames"]:
        frame["transform_matrix"] = table["frames"][0]["transform_matrix"]


@pytest.mark.parametrize(
    ("spoil", "told", "says"),
    [
        (None, ("cameras.path={table}", "cameras.input_view=7"), "the input's must be one of them"),
        (lambda table: table.update(cx=640.0), ("cameras.path={table}",), "do not fit pictures of"),
        (lambda table: table.update(camera_model="OPENCV_FISHEYE"), ("cameras.path={table}",),
         "camera_model=OPENCV_FISHEYE"),
        (lambda table: table.update(k1=0.1), ("cameras.path={table}",), "k1=0.1: only pinhole"),
        (in_one_place, ("cameras.path={table}",), "all stand in one place"),
        (None, ("scenes.views={folder}",), "view_1: no such clip; transforms.json names it"),
        (None, ("multiview.checkpoint={multiview}",), "holds 'multiview'"),
        (None, ("video=svd_xt", "multiview=seva", "video.checkpoint=random",
                "multiview.checkpoint={multiview}"), "not seva: time_embed.0.weight is missing"),
    ],
    ids=[
        "no-input", "lens", "fisheye", "bent", "one-place", "no-clip", "another-tiny",
        "another-seva",
    ],
)  # fmt: skip
def test_cameras_and_weights_that_do_not_fit_are_refused(
    spoil: Callable[[dict[str, Any]], None] | None,
    told: tuple[str, ...],
    says: str,
    clip: Path,
    small_weights: list[str],
    refused: Callable[..., str],
) -> None:
    folder = clip.parent / "views"
    write_clip(folder / "view_0")
    table = json.loads(written(folder / "transforms.json", camera_ring(3, 0.1)).read_text())
    del table["frames"][2]["file_path"]
    if spoil:
        spoil(table)
    (folder / "transforms.json").write_text(json.dumps(table))
    places = {
        "table": folder / "transforms.json",
        "folder": folder,
        "multiview": small_weights[1].partition("=")[2],
    }
    line = refused(
        "multiview=tiny_camera",
        "matrix.num_views=null",
        "scenes=folder",
        *(() if "scenes.views" in told[0] else (f"scenes.path={clip}",)),
        *(word.format(**places) for word in told),
    )
    assert says in line


# --- keys and values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nosuch=1", "nosuch: no such key; there are seed, output_dir"),
        ("+nosuch=1", "nosuch: no such key; there are seed, output_dir"),
        ("+sampler.steps=1", "sampler.steps: no such key; there are num_steps, sigma_min"),
        ("sampler.steps=1", "; there are num_steps, sigma_min"),
        ("sampler.num_step=1", "sampler.num_step: no such key, did you mean sampler.num_steps?"),
        (
            "sequences_per_call=1",
            "sequences_per_call: no such key, did you mean sampler.sequences_per_call?",
        ),
        ("variants.a=1", "variants.a=1: a variant is a list of overrides"),
        ("variants=[a]", "variants=[a]: give each a name"),
        (
            "weights=nosuch",
            "weights=nosuch: no such choice; choose alternating or constant or cosine",
        ),
        (
            "preset=nosuch",
            "choose balanced or best or calibrated_exact or fast or official or official_short",
        ),
        ("experiment=nosuch", "experiment=nosuch: no such experiment"),
        ("video=nosuch", "choose svd or svd_xt or tiny"),
        (
            "weights.curve.scael=1",
            "no such key, did you mean weights.curve.scale?; there are scale",
        ),
        (
            "+weights.curve.scael=1",
            "weights.curve.scael: d2.rules.weights.constant has no such argument",
        ),
        ("+renoise.sigmas=[1]", "renoise.sigmas: d2.rules.renoise.vrs has no such argument"),
        (
            "weights.curve.scale=steep",
            "weights.curve.scale=steep: d2.rules.weights.constant takes float",
        ),
        ("weights.curve._target_=d2.nosuch", "weights.curve._target_=d2.nosuch: no such function"),
        ("weights=null", "Config group override"),
        ("~weights", "weights"),
        ("renoise.steps=-1", "renoise.steps=-1"),
        ("composition.coefficients.uncond=nosuch", "choose default, video, multiview or mean"),
        ("sampler.num_steps=0", "sampler.num_steps=0: out of range, give 1 to 1000"),
        ("sampler.levels=[3,5]", "sampler.levels=[3.0, 5.0]: give falling noise levels below 1e5"),
        ("sampler.levels=[3,0]", "sampler.levels=[3.0, 0.0]: give falling noise levels below 1e5"),
        ("sampler.levels=[3,nan]", "sampler.levels=[3.0, nan]: give falling noise levels"),
        ("sampler.levels=3", "sampler.levels=3: a list is wanted"),
        (
            "sampler.num_steps=abc",
            "sampler.num_steps=abc: Value 'abc' of type 'str' could not be converted",
        ),
        ("sampler.num_steps=1.5", "sampler.num_steps=1.5"),
        ("sampler.num_steps=1,2", "sampler.num_steps=1,2"),
        ("sampler.num_steps=[", "sampler.num_steps"),
        ("sampler.num_steps", "sampler.num_steps"),
        ("sampler.sigma_max=nan", "sampler.sigma_max=nan"),
        ("sampler.sigma_min=90", "sampler.sigma_min=90.0: give at most sampler.sigma_max=80.0"),
        ("sampler.start=orbit", "sampler.start=orbit: choose noise or multiview"),
        ("seed=-1", "seed=-1: out of range"),
        ("metrics=[nosuch]", "choose from [reference, self_psnr, video, clip]"),
        ("matrix.num_views=two", "matrix.num_views=two"),
        ("scenes.anchor_frame=3", "scenes.anchor_frame=3: the clip has frames 0 to 2"),
        ("scenes.count=null", "scenes.count=null"),
        ("scenes=folder", "scenes.path=null"),
        ("cameras.preset=spiral", "told azimuths and elevations alone"),
        ("trainer.accelerator=nosuch", "trainer.accelerator=nosuch"),
        ("trainer.devices=none", "devices=none"),
        ("trainer.strategy=nosuch", "strategy=nosuch"),
    ],
)
def test_a_bad_override_is_refused(override: str, says: str, refused: Callable[..., str]) -> None:
    assert says in refused(override)


@pytest.mark.parametrize(
    "cameras",
    [
        "cameras.elevation_deg=[10,20]",
        "cameras.elevation_deg=90",
        "cameras.elevation_deg=high",
        "cameras.azimuth_deg=[120,360]",
        "cameras.azimuth_deg=[120,240,0]",
    ],
)
def test_bad_cameras_are_refused(cameras: str, clip: Path, refused: Callable[..., str]) -> None:
    assert cameras.partition("=")[0] in refused("scenes=folder", f"scenes.path={clip}", cameras)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["video.checkpoint", "multiview.checkpoint", "autoencoder"])
def test_a_missing_checkpoint_is_refused(
    key: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "no such weights file" in refused(f"{key}={tmp_path / 'nosuch.safetensors'}")


def test_a_checkpoint_of_another_shape_is_refused(
    tiny_weights: list[str], refused: Callable[..., str]
) -> None:
    line = refused(tiny_weights[0])  # the tiny tier's own sizes, where the networks are smaller
    assert tiny_weights[0].partition("=")[2] in line and "this network wants" in line


def test_a_checkpoint_of_another_kind_is_refused(
    small_weights: list[str], refused: Callable[..., str]
) -> None:
    assert "wanted 'multiview'" in refused(
        f"multiview.checkpoint={small_weights[0].partition('=')[2]}"
    )


@pytest.mark.parametrize(
    "write", [lambda p: torch.save({}, p), lambda p: p.write_bytes(pickle.dumps({}))]
)
def test_a_pickle_is_refused(write: Break, tmp_path: Path, refused: Callable[..., str]) -> None:
    write(tmp_path / "weights.ckpt")
    assert "pickles are never loaded" in refused(f"video.checkpoint={tmp_path / 'weights.ckpt'}")


def test_an_output_folder_below_a_file_is_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused(f"output_dir={tmp_path / 'file' / 'out'}")
    assert "cannot be written" in refused(f"output_dir={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_an_earlier_run_wrote_stays_when_the_next_is_refused(
    d2_sample: Run, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample() == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    truncate(clip)
    assert d2_sample("scenes=folder", f"scenes.path={clip}") == 2
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


# --- commands, sweeps, training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no command"),
        (["smaple"], "smaple, did you mean sample?"),
        (["sample", "--steps", "3"], "--steps: no such option"),
        (["sample", "-x"], "-x: no such option"),
    ],
)
def test_bad_commands_are_refused(
    argv: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(argv) == 2
    assert says in said(capfd)


@pytest.mark.parametrize("command", [c for c in pages.COMMANDS if c != "checkpoints"])
def test_the_help_of_a_command_names_its_groups_and_keys_that_exist(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, "--help"]) == 0
    out = capfd.readouterr().out
    assert len(out.splitlines()) <= 2 * 44 and max(map(len, out.splitlines())) <= 120
    assert all(f"\n  {group} " in out for group in pages.groups(command))
    assert all(f"\n  {key} " in out for key in pages.KEYS[command])
    for line in pages.EXAMPLES[command]:
        overrides = [
            word for word in shlex.split(line)[2:] if word != "-m" and "," not in word.split("[")[0]
        ]
        composed(command, readable(overrides))  # an example that cannot be composed is none


def test_help_version_and_configuration_wait_for_no_network(tmp_path: Path) -> None:
    help_and_version = (["--help"], ["--version"], ["sample", "--help"])
    # by its name, by its range
    refused = (["sample", "nosuch=1"], ["sample", "sampler.num_steps=-3"])
    for line in (*help_and_version, *refused, ["sample", "--cfg", "job"]):
        code = f"import sys; from d2 import cli; cli.run({line}); assert 'torch' not in sys.modules"
        done = script(sys.executable, "-c", code, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_composed_configuration_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = [
        "sample",
        "variants={a:[],b:[weights=linear,sampler.hold=[input_row]]}",
        "output_dir=${oc.env:HOME}/x",
    ]
    assert cli.run([*line, "--cfg", "job"]) == 0
    node = yaml.safe_load(capfd.readouterr().out)
    assert node["variants"] == {"a": [], "b": ["weights=linear", "sampler.hold=[input_row]"]}
    assert node["output_dir"] == "${oc.env:HOME}/x" and "hydra" not in node
    assert cli.run([*line, "--cfg=all", "--resolve"]) == 0
    node = yaml.safe_load(capfd.readouterr().out)
    assert (
        node["output_dir"] == f"{Path.home()}/x"
        and node["hydra"]["runtime"]["choices"]["weights"] == "constant"
    )


def test_a_variant_is_added_to_an_experiment(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sample", "experiment=vrs", "variants.mine=[weights=cosine]", "-c", "job"]) == 0
    variants = yaml.safe_load(capfd.readouterr().out)["variants"]
    assert variants["mine"] == ["weights=cosine"] and len(variants) > 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("weights=constant,nosuch", "weights=nosuch"),
        ("sampler.num_steps=2,abc", "sampler.num_steps=abc"),
        ("sampler.num_steps=range(2,-1,-1)", "sampler.num_steps=0: out of range"),
        ("+nosuch.key=1,2", "nosuch"),
        ("output_dir=there", "output_dir=there: all points of a sweep would write there"),
    ],
)
def test_a_sweep_over_a_bad_value_is_refused_before_its_first_point(
    override: str, says: str, refused: Callable[..., str]
) -> None:
    assert says in refused("-m", override)


def test_every_value_of_a_sweep_is_tried_and_no_more() -> None:
    lines = values_in_turn(
        [
            "a=1,2,3",
            "b=choice(x,y)",
            "c=7",
            "hydra.sweep.dir=/nowhere",
            "d=interval(0,1)",
            "e=glob(*)",
        ]
    )
    assert len(lines) == 1 + 2 + 1 + 1
    assert lines[0] == ["a=1", "b=x", "c=7", "d=0.0"]
    for value in ("a=1", "a=2", "a=3", "b=x", "b=y", "d=0.0", "d=1.0"):
        assert any(value in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["prior=nosuch"], "choose tiny_autoencoder or "),
        (["prior.batch_size=2"], "prior.batch_size=2: must exceed prior.singles=2"),
        (["precision=fp16"], "precision=fp16: "),
        (["prior.decoder_share=2"], "prior.decoder_share=2.0: out of range"),
        (["prior=tiny_decoder"], "init_from=null: prior.decoder_share=1"),
        (["prior.warmup_steps=0"], "prior.warmup_steps=0: out of range"),
        (["prior.drop=2"], "prior.drop=2.0: out of range"),
        (["trainer.accelerator=nosuch"], "trainer.accelerator=nosuch"),
        (["autoencoder=nosuch.safetensors"], "no such weights file"),
        (["init_from=nosuch.safetensors"], "no such weights file"),
        (["sampler.num_steps=3"], "sampler"),
    ],
)
def test_bad_training_is_refused(
    overrides: list[str],
    says: str,
    small_networks: None,
    small_weights: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = [
        f"output_dir={tmp_path / 'out'}",
        f"cache_dir={tmp_path / 'cache'}",
        small_weights[-1],
    ]
    assert cli.run(["train", *places, *overrides]) == 2
    assert says in said(capfd)
    assert not list(tmp_path.iterdir())


# --- bugs -----------------------------------------------------------------------------------------


def test_an_unequal_zip_in_d2_is_a_bug(d2_sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # fewer names than matrices
    monkeypatch.setattr(matrix_sampler, "BASELINES", ("columns_alone",))
    with pytest.raises(ValueError, match="zip"):
        d2_sample("baselines=true")


def test_complaints_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert complain("two\n  lines") == 2
    assert capfd.readouterr().err == "d2: two lines\n"


# --- the console script ---------------------------------------------------------------------------


def script(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


@pytest.mark.slow
def test_the_console_script_says_one_line_and_exits_with_2(
    tmp_path: Path, tiny_weights: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    done = script(
        str(SCRIPT), "sample", *tiny_weights, "scenes=folder", "scenes.path=empty", cwd=tmp_path
    )
    assert done.returncode == 2 and done.stdout == ""
    said = f"d2: scenes.path={tmp_path / 'empty'}: the folder is empty"
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["d2", "d2.cli"])
def test_the_module_is_the_same_program(module: str, tmp_path: Path) -> None:
    done = script(sys.executable, "-m", module, "sample", "nosuch=1", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("d2: nosuch: no such key") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bug_exits_with_1_and_its_traceback(tmp_path: Path) -> None:
    broken = "from d2 import cli; cli.execute = lambda *_, **__: 1 / 0; cli.main(['sample'])"
    done = script(sys.executable, "-c", broken, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ZeroDivisionError" in done.stderr


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """`d2 sample --help | head`; and a terminal that knows no × is written to all the same."""
    line = f"{shlex.quote(sys.executable)} -m d2 sample --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    latin = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=latin)
    assert (done.stdout, done.stderr) == ("u", "")
    assert done.returncode in (0, 141)  # it may have written all before
