"""`d2 sample`: from a checked configuration to scenes, priors, rules, and the predict loop over them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from d2.config.binding import bind
from d2.config.names import Label
from d2.config.schema import SampleConfig
from d2.config.tiers import Sizes, check_moments, check_tier, facts_of, is_tiny, load_priors, sizes
from d2.data import world4d
from d2.data.folder import list_clips, read_clip
from d2.data.matting import cut_out, open_model
from d2.data.preprocess import preprocess_clip
from d2.errors import InputError, say
from d2.evaluate.networks import sample_suite
from d2.files import ensure_writable
from d2.loggers import start_loggers
from d2.matrix import Cameras, camera_ring
from d2.pipeline import Rules
from d2.plan.cost import of_methods
from d2.plan.planner import out_of_memory_advice
from d2.plan.planning import choice_of, planned
from d2.priors.sv3d import AZIMUTH_SIGN
from d2.sample.earlier import begin, claim, end, was_finished
from d2.sample.log import Log
from d2.sample.matrix_sampler import MatrixSampler
from d2.sample.measure import Measure
from d2.sample.progress import SamplerProgress
from d2.sample.write import Origin, Write
from d2.sampling import needed
from d2.scene import Scene
from d2.terms import Settings, Unary
from d2.trainer import make_trainer

SEED_STRIDE = 1_000_003  # between the noise streams of neighbouring `seed`s
FOLDER_ELEVATION_DEG = 10.0  # of a user's own camera when not given, as in the published program


NAME_LIMIT = 200  # bytes; file systems take 255, of which a folder that is being written needs some
LOGS = "log"  # the folder of the loggers, beside those of the scenes


class Scenes(NamedTuple):
    """The scenes of a run, and one line for each that could not be read."""

    scenes: list[Scene]
    failures: list[str]


def sample(config: SampleConfig, text: str, label: Label, variant: str) -> int:
    """Run the job; `text` is the configuration as YAML, `label` what loggers call it, `variant` what its results go by.

    Returns the exit code: 0, or 3 if scenes were left out.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    check_tier(config)
    size = sizes(config)
    rules, settings = make_rules(config), make_settings(config)
    if config.plan:
        print(planned(config, rules, settings))
        return 0
    if config.matting.kind == "rembg" and config.scenes.source == "folder":
        open_model(matting_model(config))  # what is missing stops the run
    sample_suite(config, size.num_views, size.num_frames)  # so does a missing network of a metric
    found, folder, text = load_scenes(config, size), Path(config.output_dir), with_facts(text, facts_of(config))
    claim(folder, text, overwrite=config.overwrite)
    if was_finished(folder, text, found.scenes):
        if rank_zero_only.rank == 0:
            say(f"d2: {folder}: finished before, not run again")
    else:
        baselines = config.baselines and any(scene.truth for scene in found.scenes)  # else nothing measures them
        module = MatrixSampler(
            load_priors(config),
            rules,
            settings,
            num_frames=size.num_frames,
            baselines=baselines,
            offload=config.offload,
        )
        predict(config, module, found.scenes, folder, text, label, variant)
    end(folder, found.scenes)
    if not found.failures or rank_zero_only.rank:  # Lightning kills all processes when one of them exits with a code
        return 0
    for line in found.failures:
        say(f"d2: left out: {line}")
    return 3


def predict(
    config: SampleConfig,
    module: MatrixSampler,
    scenes: Sequence[Scene],
    folder: Path,
    text: str,
    label: Label,
    variant: str,
) -> None:
    """One predict loop over the scenes, with everything written into `folder`; what is finished there stays."""
    module.folder, module.save_every_seconds = folder, config.save_every_seconds
    evaluations = len(module.rules.renoise(module.settings.sigmas)) * (3 if module.baselines else 1)
    size = sizes(config)
    cost = partial(of_methods, module.rules, module.settings, size.num_views, size.num_frames)
    costs = cost(baselines=module.baselines)
    origin = Origin(folder.resolve().name, variant, config.seed, text, facts_of(config), costs)
    measure = Measure(partial(sample_suite, config, size.num_views, size.num_frames), folder)
    write = Write(folder, measure, origin, pages=config.pages)
    callbacks = [SamplerProgress(len(scenes), evaluations), measure, write, Log(folder, measure)]
    trainer = make_trainer(config.trainer, folder, [], callbacks)
    ensure_writable(folder)
    begin(folder, text)
    told = dataclasses.asdict(config) | {"weights_hash": facts_of(config)}
    trainer.loggers = start_loggers(config.logger, folder, label, told)
    loader = DataLoader(list(scenes), batch_size=None)  # type: ignore[arg-type]
    try:
        trainer.predict(module, loader, return_predictions=False)
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory_advice(error, choice_of(config))) from error


def make_rules(config: SampleConfig) -> Rules:
    """Rule nodes to functions; a misspelt argument or an unknown function is a ValueError here."""
    bound = {
        key: bind(getattr(config, key), key) for key in ("renoise", "weights", "guidance", "composition", "solver")
    }
    check_moments(config)
    rules = Rules(bound["renoise"], bound["weights"], bound["guidance"], bound["composition"], bound["solver"])
    plan = rules.renoise(make_settings(config).sigmas)
    size = sizes(config)
    cameras, num_frames = camera_ring(size.num_views), size.num_frames
    for step in (plan[0], plan[-1]):  # what a rule finds wrong with its numbers it says now
        weights, scales = rules.weights(step, cameras, num_frames), rules.guidance(step, cameras, num_frames)
        needs = needed(rules.compose, [], weights, scales)
        if config.unary.prior is None and any(half.any() for half in needs.get("unary", ())):
            raise InputError("unary.prior=null: the composition weighs cells by themselves; give multiview or video")
    return rules


def anchor_frames(config: SampleConfig) -> tuple[int, ...]:
    """Frames that an orbit is sampled at: those given, or where half-overlapping windows of the rows start."""
    given, first, window = config.scenes.anchor_frames, config.scenes.anchor_frame, config.video.window
    num_frames = sizes(config).num_frames
    if given is not None:
        if not given or first != 0:
            raise InputError(
                f"scenes.anchor_frames={given}: give one frame or more, and no scenes.anchor_frame={first}"
            )
        return tuple(given)
    if window is None or window >= num_frames:
        return (first,)
    if first != 0:
        raise InputError(f"scenes.anchor_frame={first}: rows in windows start at several; give scenes.anchor_frames")
    return (*range(0, num_frames - window, max(1, window // 2)), num_frames - window)


def make_settings(config: SampleConfig) -> Settings:
    s = config.sampler
    return Settings(
        num_steps=s.num_steps,
        sigma_min=s.sigma_min,
        sigma_max=s.sigma_max,
        rho=s.rho,
        start=s.start,  # type: ignore[arg-type]
        reinit=s.reinit,
        conv_blend=config.multiview.conv_blend,
        azimuth_sign=1 if is_tiny(config) else AZIMUTH_SIGN,
        sequences_per_call=s.sequences_per_call,
        encode_chunk=s.encode_chunk,
        decode_chunk=s.decode_chunk,
        anchor_frames=anchor_frames(config),
        video_window=config.video.window,
        multiview_window=config.multiview.window,
        multiview_dilation=config.multiview.dilation,
        hold=tuple(s.hold),
        unary=None if config.unary.prior is None else Unary(**dataclasses.asdict(config.unary)),
        video_cond_aug=config.video.cond_aug,
        multiview_cond_aug=config.multiview.cond_aug,
        fps_id=config.video.fps_id,
        motion_bucket_id=config.video.motion_bucket_id,
    )


def with_facts(text: str, facts: dict[str, str]) -> str:
    """The configuration as it is kept beside results."""
    return text + "".join(f"# {name}: {value}\n" for name, value in facts.items())


def load_scenes(config: SampleConfig, size: Sizes) -> Scenes:
    """All scenes of a run. A folder's scene that cannot be read is left out if there are others, else refused."""
    c = config.scenes
    for anchor in anchor_frames(config):
        if not 0 <= anchor < size.num_frames:
            raise InputError(f"scenes.anchor_frame={anchor}: the clip has frames 0 to {size.num_frames - 1}")
    if c.source == "world4d":
        assert c.count is not None
        return Scenes([world_scene(config, c.first + i, size) for i in range(c.count)], [])
    assert c.path is not None
    scenes, failures = [], []
    paths = list_clips(Path(c.path))
    cameras = make_cameras(config, size.num_views)
    for index, path in list(enumerate(paths))[c.first :][: c.count]:
        try:
            scenes.append(folder_scene(config, path, index, cameras, size))
        except ValueError as error:
            failures.append(str(error))
    if not scenes:
        raise InputError(failures[0] if failures else f"scenes.first={c.first}: {c.path} has {len(paths)} scenes")
    return Scenes(scenes, failures)


def world_scene(config: SampleConfig, index: int, size: Sizes) -> Scene:
    """A test or validation scene of world4d, with its truth."""
    if config.cameras.elevation_deg is not None or config.cameras.azimuth_deg is not None:
        raise InputError("cameras: a scene of world4d brings its own; leave cameras.elevation_deg and azimuth_deg null")
    scene = world4d.scene(
        config.scenes.split,  # type: ignore[arg-type]
        index,
        num_views=size.num_views,
        num_frames=size.num_frames,
        size=size.picture,
        fps=config.scenes.fps,
    )
    return scene._replace(seed=scene.seed + SEED_STRIDE * config.seed)


def folder_scene(config: SampleConfig, path: Path, index: int, cameras: Cameras, size: Sizes) -> Scene:
    """A user's clip or picture."""
    refuse_name(path)
    clip = read_clip(path, num_frames=size.num_frames, start=config.frames.start, stride=config.frames.stride)
    if config.matting.kind == "rembg":
        clip = cut_out(clip, model=matting_model(config))
    pixels, masks = preprocess_clip(clip, size=size.picture, image_frame_ratio=config.scenes.image_frame_ratio)
    return Scene(clip.name, index + SEED_STRIDE * config.seed, pixels, masks, cameras, config.scenes.fps)


def refuse_name(path: Path) -> None:
    """Raise a ValueError for a clip whose scene cannot have a folder of that name."""
    name = path.name if path.is_dir() else path.stem
    if len(os.fsencode(name)) > NAME_LIMIT:
        raise InputError(f"{path}: its name is too long for a scene's folder; give it at most {NAME_LIMIT} bytes")
    if name == LOGS:
        raise InputError(f"{path}: a scene called {LOGS} would lie where the logger writes; rename it")


def matting_model(config: SampleConfig) -> Path | None:
    return Path(config.matting.model) if config.matting.model else None


def make_cameras(config: SampleConfig, num_views: int) -> Cameras:
    """The cameras of a user's scene."""
    elevation = config.cameras.elevation_deg
    elevation = FOLDER_ELEVATION_DEG if elevation is None else elevation
    listed = elevation if isinstance(elevation, list) else [elevation] * num_views
    if len(listed) != num_views or not all(isinstance(e, (int, float)) and -90 < e < 90 for e in listed):
        raise InputError(
            f"cameras.elevation_deg={elevation}: give one number, or one a view ({num_views}), between -90 and 90"
        )
    ring = camera_ring(num_views, torch.deg2rad(torch.tensor(listed, dtype=torch.float64)))
    azimuth = config.cameras.azimuth_deg
    if azimuth is None:
        return ring
    if len(azimuth) != num_views or not math.isclose(azimuth[-1], 360):
        raise InputError(
            f"cameras.azimuth_deg={azimuth}: give one number a view ({num_views}), the last, the input view's, 360"
        )
    return ring._replace(azimuth_rad=torch.deg2rad(torch.tensor(azimuth, dtype=torch.float64)))
