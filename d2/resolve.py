"""Configurations into jobs, once: every choice made, every rule bound, every path whole, and all
that can be checked.

Below this module no function takes a configuration. It lies above the rooms, as it knows what each
of them wants, and imports a room when its command is resolved.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from d2.config.binding import bind, moments_file
from d2.config.command_line import RULES, Composed, composed
from d2.config.names import Label
from d2.config.schema import (
    CamerasConfig,
    EvaluateConfig,
    ReconstructConfig,
    ReportConfig,
    SampleConfig,
    TrainConfig,
    ViewConfig,
)
from d2.data.camera_file import TABLE, read_table
from d2.data.rigs import Wanted, make_cameras
from d2.data.sources import SceneSource
from d2.errors import InputError
from d2.files import absolute, asset, fingerprint
from d2.job import BASELINES, Assets, Job
from d2.matrix import MatrixSize, camera_ring
from d2.metrics.video_sets import TRAVERSALS
from d2.networks import Networks, choose_networks, matrix_size
from d2.priors.sv3d import AZIMUTH_SIGN
from d2.reference import check_anchors
from d2.rules.bundle import Rules
from d2.rules.choosing import cuts
from d2.sampling import needed
from d2.settings import Devices, Logging, Metrics, Settings, Unary
from d2.terms import RING_ONLY

if TYPE_CHECKING:
    from d2.evaluate.job import EvaluateJob
    from d2.recon.job import ReconstructJob
    from d2.recon.view import ViewJob
    from d2.study.report import ReportJob
    from d2.train.job import TrainJob

FREE = {  # what variants may change; all else they share
    *("sampler", "unary", "particles", "baselines", "variants", "seeds", "compare_to"),
    *RULES,
}


# --- d2 sample ------------------------------------------------------------------------------------


def resolve_jobs(command: Composed, compose: Callable[[list[str]], Composed]) -> list[Job]:
    """Resolve a command line to its runs: one, or one a variant and seed, a seed's runs together.

    `compose` gives a variant's configuration for its overrides. An InputError names what cannot be
    compared.
    """
    config = command.config
    base = resolve(config, command.text, command.name, command.label)
    if not (config.variants or config.seeds):
        nodes = {key: getattr(config, key) for key in RULES}
        published = _published(nodes, base) if base.baselines else None
        return [replace(base, published=published)]
    variants = config.variants or {command.name: []}
    _check_study(config.metrics, config.seeds, base.source)
    known = [*variants, *(BASELINES if base.baselines else ())]
    if config.compare_to is not None and config.compare_to not in known:
        raise InputError(
            f"compare_to={config.compare_to}: choose one of the variants, {', '.join(known)}"
        )
    first, label, jobs = next(iter(variants)), command.label, []
    for seed in config.seeds or [config.seed]:
        for variant, overrides in variants.items():
            baselines = base.baselines and variant == first  # they are the same for all variants
            own = compose([f"seed={seed}", *overrides, f"baselines={baselines}"])
            parts = [variant] * bool(config.variants) + [f"seed_{seed}"] * bool(config.seeds)
            name = "/".join([label.name] * bool(label.group) + parts)
            called = label._replace(name=name, group=label.group or base.folder.name)
            job = resolve(own.config, own.text, variant, called)
            _check_variant(job, {**base.told, "seed": seed})
            jobs.append(
                replace(
                    job,
                    folder=base.folder.joinpath(*parts),
                    networks=base.networks,
                    reference=base.reference,
                    assets=None,
                )
            )
    return jobs


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
    listed = config.cameras.azimuth_deg is not None or isinstance(
        config.cameras.elevation_deg, list
    )
    if networks.multiview == "sv3d_u" and listed:
        raise InputError(
            "multiview=sv3d_u: sv3d_u is told no cameras; take multiview=sv3d_p, or one elevation"
        )
    if source.cameras.rig is not None and networks.multiview in ("tiny", "sv3d_u", "sv3d_p"):
        raise InputError(RING_ONLY)
    rules = make_rules(
        {key: getattr(config, key) for key in RULES}, settings, size, config.particles
    )
    _check_moments(config.composition, networks)
    if config.compile:
        _check_compile(config.offload, config.trainer.accelerator)
    motion = bind(config.recon.motion, "recon.motion")
    wanted = config.reconstruct is True or (config.reconstruct == "auto" and config.pages)
    return Job(
        variant=variant,
        seed=config.seed,
        folder=absolute(config.output_dir),
        config=text,
        told=asdict(config),
        label=label,
        size=size,
        networks=networks,
        offload=config.offload,
        compile=config.compile,
        rules=rules,
        settings=settings,
        reference=(rules, settings),
        source=source,
        metrics=_metrics_of_samples(
            config.metrics, config.features, config.features_file, vars(config.clip)
        ),
        baselines=source.has_truth if config.baselines == "auto" else config.baselines,
        published=None,
        pages=config.pages,
        save_every_seconds=config.save_every_seconds,
        overwrite=config.overwrite,
        devices=_devices(vars(config.trainer)),
        logging=Logging(**vars(config.logger)),
        assets=Assets(config.recon, motion, config.reconstruct is True) if wanted else None,
    )


def _published(own: Mapping[str, Any], job: Job) -> Rules | None:
    """Bind the published rule for as many steps as the job has, the first fifth of them repeated;
    None where the job's own rules are these."""
    first_fifth = -(-job.settings.num_steps // 5)
    config = composed("sample", ["preset=official_short", f"renoise.steps={first_fifth}"]).config
    nodes = {key: getattr(config, key) for key in RULES}
    return None if own == nodes else make_rules(nodes, job.settings, job.size)


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
    return Settings(
        num_steps=s.num_steps,
        sigma_min=s.sigma_min,
        sigma_max=s.sigma_max,
        rho=s.rho,
        start=s.start,  # type: ignore[arg-type]
        reinit=s.reinit,
        conv_blend=config.multiview.conv_blend,
        azimuth_sign=1 if networks.is_tiny else AZIMUTH_SIGN,
        sequences_per_call=s.sequences_per_call,
        encode_chunk=s.encode_chunk,
        decode_chunk=s.decode_chunk,
        anchor_frames=anchor_frames(
            scenes.anchor_frames, scenes.anchor_frame, config.video.window, num_frames
        ),
        video_window=config.video.window,
        multiview_window=config.multiview.window,
        multiview_dilation=config.multiview.dilation,
        hold=tuple(s.hold),
        unary=None if config.unary.prior is None else Unary(**asdict(config.unary)),
        video_cond_aug=config.video.cond_aug,
        multiview_cond_aug=config.multiview.cond_aug,
        fps_id=config.video.fps_id,
        motion_bucket_id=config.video.motion_bucket_id,
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
    wanted = Wanted(**{**vars(cameras), "path": _absolute(cameras.path)})
    return SceneSource(
        kind="views" if scenes.views else scenes.source,
        split=scenes.split,  # type: ignore[arg-type]
        path=_absolute(scenes.views or scenes.path),
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
        matting_model=_absolute(config.matting.model),
    )


def _listed_cameras(views: str | None, path: str | None) -> int | None:
    """How many cameras a file says, where one does: that of a folder of views, or one of its
    own."""
    folder = _absolute(views)
    file = _absolute(path) if folder is None else folder / TABLE
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


def _metrics_of_samples(
    names: Sequence[str], features: str, file: str | None, clip: Mapping[str, Any]
) -> Metrics | None:
    """What is measured of samples, as `d2 evaluate` would; `reference` brings `consistency` with
    it."""
    if not names:
        return None
    more = ("consistency",) * ("reference" in names)
    return _metrics((*names, *more), tuple(TRAVERSALS), features, file, None, clip)


def _metrics(
    names: Sequence[str],
    traversals: Sequence[str],
    features: str | None,
    file: str | None,
    resize: str | None,
    clip: Mapping[str, Any],
) -> Metrics:
    path, clip_file = _absolute(file), _absolute(clip["file"])
    names, traversals = tuple(names), tuple(traversals)
    return Metrics(
        names, traversals, features, path, resize, clip_file, clip["model"], clip["text"]
    )


def _check_study(metrics: Sequence[str], seeds: Sequence[int], source: SceneSource) -> None:
    """Refuse what leaves nothing to compare."""
    if "reference" not in metrics:
        raise InputError(f"metrics={metrics}: a study compares figures; take metrics=[reference]")
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise InputError(f"seeds={seeds}: give different numbers, none below 0")
    if not source.has_truth:
        raise InputError(
            f"scenes.source={source.kind}: a study compares with truth; take scenes=world4d"
        )


def _check_variant(job: Job, base: Mapping[str, Any]) -> None:
    """Variants share scenes, networks and outputs."""
    for key, value in job.told.items():
        if key not in FREE and value != base[key]:
            raise InputError(
                f"variants.{job.variant}: changes {key}, which all variants share; give it to the"
                " study"
            )


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


# --- the other commands ---------------------------------------------------------------------------


def resolve_train(config: TrainConfig) -> TrainJob:
    """Resolve `d2 train`."""
    from d2.train.job import TrainJob
    from d2.train.prior_trainer import LossConfig, OptimizerConfig

    p = config.prior
    shipped = asset("checkpoints") / "tiny_autoencoder.safetensors"
    return TrainJob(
        kind=p.kind,  # type: ignore[arg-type]
        output_dir=absolute(config.output_dir),
        cache_dir=absolute(config.cache_dir),
        autoencoder=_absolute(config.autoencoder) or shipped,
        optimizer=OptimizerConfig(
            lr=p.lr,
            muon=p.optimizer == "muon",
            max_steps=p.max_steps,
            warmup_steps=p.warmup_steps,
            decay_steps=p.decay_steps,
            ema_decay=0.99 if p.kind == "video_encoder" else 0.999,  # of a run that short
        ),
        loss=LossConfig(
            singles=p.singles,
            log_sigma_mean=p.log_sigma_mean,
            log_sigma_std=p.log_sigma_std,
            drop=p.drop,
        ),
        num_scenes=config.num_scenes,
        num_validation_scenes=config.num_validation_scenes,
        batch_size=p.batch_size,
        decoder_steps=round(p.decoder_share * p.max_steps),
        edge_weight=p.edge_weight,
        latent_noise=p.latent_noise,
        seed=config.seed,
        init_from=_absolute(config.init_from),
        cuda_graphs=config.cuda_graphs,
        validate_every=config.validate_every,
        save_every_minutes=config.save_every_minutes,
        max_minutes=config.max_minutes,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy=config.trainer.strategy,
        num_nodes=config.trainer.num_nodes,
        timeout_seconds=config.trainer.timeout_seconds,
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[config.precision],
    )


def resolve_evaluate(config: EvaluateConfig) -> EvaluateJob:
    """Resolve `d2 evaluate`; the truth of runs lies beside their matrices."""
    from d2.evaluate.job import EvaluateJob

    sampled = _folders(config.run if config.pred is None else config.pred)
    return EvaluateJob(
        sampled=sampled,
        truth=_absolute(config.truth) or (sampled[0] if config.run else None),
        objects=config.objects,
        metrics=_metrics(
            config.metrics,
            config.traversals,
            config.features,
            config.features_file,
            config.features_resize,
            vars(config.clip),
        ),
        size=config.size,
        input_view=config.input_view,
        compare_to=_absolute(config.compare_to),
        folder=absolute(config.output_dir),
        seed=config.seed,
        devices=_devices(vars(config.trainer)),
    )


def resolve_reconstruct(config: ReconstructConfig, label: Label) -> ReconstructJob:
    """Resolve `d2 reconstruct`; an InputError where there is nothing to reconstruct."""
    from d2.recon.job import ReconstructJob, find_sources

    motion = bind(config.recon.motion, "recon.motion")
    runs, matrix = _folders(config.run), _absolute(config.matrix)
    return ReconstructJob(
        sources=find_sources(runs, matrix, _absolute(config.scenes.path)),
        folder=absolute(config.output_dir),
        recipe=config.recon,
        motion=motion,
        metrics=config.metrics,
        exports=config.exports,
        seed=config.seed,
        accelerator=config.trainer.accelerator,
        logging=Logging(**vars(config.logger)),
        label=label,
        told=asdict(config),
    )


def resolve_view(config: ViewConfig) -> ViewJob:
    """Resolve `d2 view`; an InputError where there is not one scene."""
    from d2.recon.view import ViewJob, find_scene

    assert config.run is not None
    scene, matrix = find_scene(absolute(config.run), _absolute(config.matrix))
    return ViewJob(scene=scene, matrix=matrix, host=config.host, port=config.port)


def resolve_report(config: ReportConfig, text: str, label: Label) -> ReportJob:
    """Resolve `d2 report`."""
    from d2.study.report import ReportJob

    return ReportJob(
        runs={run: absolute(run) for run in config.runs},
        folder=absolute(config.output_dir),
        compare_to=config.compare_to,
        quality=config.quality,
        shown_scenes=config.shown_scenes,
        seed=config.seed,
        logging=Logging(**vars(config.logger)),
        label=label,
        text=text,
        told=asdict(config),
    )


def _devices(trainer: Mapping[str, Any]) -> Devices:
    return Devices(*(trainer[name] for name in Devices._fields))


def _absolute(path: str | None) -> Path | None:
    return absolute(path) if path else None


def _folders(given: str | Sequence[str] | None) -> list[Path]:
    return [absolute(run) for run in ([given] if isinstance(given, str) else given or ())]
