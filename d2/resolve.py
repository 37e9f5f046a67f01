"""A configuration of `d2 sample` into a job, once: every choice made, every rule bound, every path
whole, and all that can be checked.

Below this module and those of commands/ no function takes a configuration.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from d2.config.binding import bind, moments_file
from d2.config.bounds import values
from d2.config.command_line import RULES
from d2.config.names import Label
from d2.config.schema import CamerasConfig, EvaluateConfig, SampleConfig, TrainerConfig
from d2.data.camera_file import TABLE, read_table
from d2.data.rigs import Wanted, make_cameras
from d2.data.sources import SceneSource
from d2.errors import InputError
from d2.files import absolute, fingerprint, given_path
from d2.job import Assets, Job
from d2.matrix import MatrixSize, camera_ring
from d2.metrics.video_sets import TRAVERSALS
from d2.networks import Networks, choose_networks, matrix_size
from d2.priors.sv3d import AZIMUTH_SIGN
from d2.reference import check_anchors
from d2.rules.bundle import Rules
from d2.rules.choosing import cuts
from d2.sampling import needed
from d2.settings import Devices, Logging, Metrics, Settings, Unary
from d2.terms import check_cameras

# numbers of the sampler that are told as they are given
SAME = "num_steps sigma_min sigma_max rho start reinit sequences_per_call encode_chunk decode_chunk"


def resolve(config: SampleConfig, text: str, variant: str, label: Label) -> Job:
    """Resolve one configuration; `text` is its YAML, `variant` what its results go by."""
    networks = choose_networks(
        config.video.network,
        config.multiview.network,
        given={
            "video.checkpoint": config.video.checkpoint,
            "multiview.checkpoint": config.multiview.checkpoint,
            "autoencoder": config.autoencoder,
            "cell": config.cell,
        },
        precision=config.precision,
        seed=config.seed,
    )
    num_views = config.matrix.num_views or _listed_cameras(config.scenes.views, config.cameras.path)
    size = matrix_size(networks, num_views, config.matrix.num_frames)
    settings, source = _settings(config, networks, size.num_frames), _source(config, size)
    one_elevation = not isinstance(config.cameras.elevation_deg, list)
    listed = config.cameras.azimuth_deg is not None or not one_elevation
    if listed and networks.multiview_config.cameras == "none":
        name = networks.multiview
        raise InputError(
            f"multiview={name}: {name} is told no cameras; take multiview=sv3d_p, or one elevation"
        )
    check_cameras(networks.multiview_config, source.cameras)
    rules = make_rules(
        {key: getattr(config, key) for key in RULES}, settings, size, config.particles
    )
    _check_moments(config.composition, networks)
    if config.compile:
        _check_compile(config.offload, config.trainer.accelerator)
    motion = bind(config.recon.motion, "recon.motion")
    # `reference` brings `consistency` with it
    metrics = [*config.metrics, *["consistency"] * ("reference" in config.metrics)]
    wanted = config.reconstruct is True or (config.reconstruct == "auto" and config.pages)
    return Job(
        variant=variant,
        folder=absolute(config.output_dir),
        config=text,
        told=asdict(config),
        label=label,
        size=size,
        networks=networks,
        rules=rules,
        settings=settings,
        reference=(rules, settings),
        source=source,
        metrics=metrics_of(config, metrics, tuple(TRAVERSALS)) if metrics else None,
        baselines=source.has_truth if config.baselines == "auto" else config.baselines,
        published=None,
        **values(config, "seed offload compile pages save_every_seconds overwrite"),
        devices=devices_of(config.trainer),
        logging=Logging(**vars(config.logger)),
        assets=Assets(config.recon, motion, config.reconstruct is True) if wanted else None,
    )


def _check_compile(offload: str, accelerator: str) -> None:
    """Refuse a compilation that would not end, or would not know where its weights are."""
    if offload != "none":
        raise InputError(
            f"compile=true offload={offload}: what is compiled stays on the device; set"
            " offload=none"
        )
    if accelerator == "cpu" or not torch.cuda.is_available():
        raise InputError(
            "compile=true: wants a GPU, on a CPU it takes longer than it saves; set compile=false"
        )


def _settings(config: SampleConfig, networks: Networks, num_frames: int) -> Settings:
    """The plain numbers of sampling."""
    s, scenes = config.sampler, config.scenes
    if not networks.is_tiny and config.video.motion_bucket_id is None:
        raise InputError(
            f"video.motion_bucket_id=null: {networks.video} was told its own measure; give a number"
        )
    anchors = anchor_frames(
        scenes.anchor_frames, scenes.anchor_frame, config.video.window, num_frames
    )
    return Settings(
        **{**values(s, SAME), **({"num_steps": len(s.levels)} if s.levels else {})},
        levels=tuple(s.levels),
        **values(config.video, "fps_id motion_bucket_id"),
        conv_blend=config.multiview.conv_blend,
        azimuth_sign=1 if networks.is_tiny else AZIMUTH_SIGN,
        anchor_frames=anchors,
        video_window=config.video.window,
        multiview_window=config.multiview.window,
        multiview_dilation=config.multiview.dilation,
        told_orbit=config.multiview.told_orbit,
        hold=tuple(s.hold),
        unary=None if config.unary.prior is None else Unary(**asdict(config.unary)),
        video_cond_aug=config.video.cond_aug,
        multiview_cond_aug=config.multiview.cond_aug,
    )


def anchor_frames(
    given: Sequence[int] | None, first: int, window: int | None, num_frames: int
) -> tuple[int, ...]:
    """Frames that an orbit is sampled at: those given, or where half-overlapping windows of the
    rows start."""
    if given is not None and (not given or first != 0):
        raise InputError(
            f"scenes.anchor_frames={given}: give one frame or more, and no"
            f" scenes.anchor_frame={first}"
        )
    if given is None and window is not None and window < num_frames:
        if first != 0:
            raise InputError(
                f"scenes.anchor_frame={first}: rows in windows start at several; give"
                " scenes.anchor_frames"
            )
        given = (*range(0, num_frames - window, max(1, window // 2)), num_frames - window)
    anchors = tuple(given or (first,))
    check_anchors(anchors, num_frames)
    return anchors


def _source(config: SampleConfig, size: MatrixSize) -> SceneSource:
    """The scenes, unread."""
    scenes, cameras = config.scenes, config.cameras
    wanted = Wanted(**{**vars(cameras), "path": given_path(cameras.path)})
    return SceneSource(
        kind="views" if scenes.views else scenes.source,
        split=scenes.split,  # type: ignore[arg-type]
        path=given_path(scenes.views or scenes.path),
        first=scenes.first,
        count=scenes.count,
        seed=config.seed,
        size=size,
        fps=scenes.fps,
        start=config.frames.start,
        stride=config.frames.stride,
        image_frame_ratio=scenes.image_frame_ratio,
        cameras=make_cameras(wanted, size.num_views),
        path_wanted=None if cameras == CamerasConfig() else wanted,
        camera_file=wanted.path,
        cut_out=config.matting.kind == "rembg",
        matting_model=given_path(config.matting.model),
    )


def _listed_cameras(views: str | None, path: str | None) -> int | None:
    """How many cameras a file says, where one does: that of a folder of views, or one of its
    own."""
    folder = given_path(views)
    file = given_path(path) if folder is None else folder / TABLE
    return None if file is None else len(read_table(file).names)


def make_rules(
    nodes: Mapping[str, Any], settings: Settings, size: MatrixSize, particles: int = 1
) -> Rules:
    """Bind the rules; what one finds wrong with its numbers it says now, at the first and last
    step."""
    bound = {key: bind(node, key) for key, node in nodes.items()}
    several = bound["choosing"]._replace(particles=particles) if particles > 1 else None
    rules = Rules(*(bound[key] for key in RULES if key != "choosing"), choose=several)
    plan, cameras = rules.renoise(settings.sigmas), camera_ring(size.num_views)
    if several:
        cuts(plan, several.levels)
    for step in (plan[0], plan[-1]):
        weights = rules.weights(step, cameras, size.num_frames)
        scales = rules.guidance(step, cameras, size.num_frames)
        needs = needed(rules.compose, [], weights, scales)
        if settings.unary is None and any(half.any() for half in needs.get("unary", ())):
            raise InputError(
                "unary.prior=null: the composition weighs cells by themselves; give multiview or"
                " video"
            )
    return rules


def metrics_of(
    config: SampleConfig | EvaluateConfig,
    names: Sequence[str],
    traversals: Sequence[str],
    resize: str | None = None,
) -> Metrics:
    """What is measured, and the files of the networks that it takes."""
    return Metrics(
        names=tuple(names),
        traversals=tuple(traversals),
        features=config.features,
        features_file=given_path(config.features_file),
        features_resize=resize,
        clip_file=given_path(config.clip.file),
        clip_model=config.clip.model,
        clip_text=config.clip.text,
    )


def devices_of(trainer: TrainerConfig) -> Devices:
    """What a job runs on."""
    return Devices(**values(trainer, "accelerator devices strategy num_nodes timeout_seconds"))


def _check_moments(node: Any, networks: Networks) -> None:
    """Refuse the tiny priors' moments for published ones; warn of any that are not those of the
    job's weights."""
    if not isinstance(node, dict) or node.get("_target_") != "d2.rules.calibrated.fitted":
        return
    file = node.get("file")
    if file is None and not networks.is_tiny:
        raise InputError(
            "composition.file=null: the shipped moments are the tiny priors'; give those of d2"
            " calibrate"
        )
    measured = json.loads(moments_file(file).read_text(encoding="utf-8")).get("facts", {})
    files = {kind: networks.files[kind] for kind in ("video", "multiview")}
    there = {k: path for k, path in files.items() if isinstance(path, Path) and path.exists()}
    others = [kind for kind, path in there.items() if measured.get(kind) != fingerprint(path)]
    if others:
        warnings.warn(
            f"composition.file={file or 'null'}: measured with other weights ({', '.join(others)})"
            " than this run's; d2 calibrate measures these",
            stacklevel=2,
        )
