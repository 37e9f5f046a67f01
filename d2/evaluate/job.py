"""`d2 evaluate`: from folders of matrices to a table, a summary and a card.

Every object is measured on one rank, its index modulo the world size, and kept in
output_dir/objects as soon as it is finished: the tables are made of these files alone, whoever
wrote them and when.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from d2.errors import InputError, say
from d2.evaluate import card
from d2.evaluate.folders import (
    Candidate,
    Found,
    Pictures,
    files_of,
    find_objects,
    layout_of,
    read_sample,
    read_true,
)
from d2.evaluate.summary import Evaluation, read_evaluation, summary
from d2.files import commit, ensure_writable, read_metadata, write_json, write_tensors, write_text
from d2.io import read_matrix
from d2.metrics import features
from d2.metrics.figures import (
    ALL,
    EVALUATED,
    Figure,
    deciding,
    hash_of,
    weights_hash,
    write_figures,
)
from d2.metrics.intervals import Interval
from d2.metrics.networks import Metrics, load_suite
from d2.metrics.suite import (
    NEED_TRUTH,
    Measured,
    Suite,
    encoded,
    measure,
    seen_pairs,
    set_differences,
    set_figures,
)
from d2.recon.self_fit import fitted_matrix
from d2.scene import Truth
from d2.trainer import Devices, make_trainer


@dataclass(frozen=True)
class EvaluateJob:
    """All that decides an evaluation."""

    sampled: Sequence[Path]  # folders of objects; several: samples of each
    truth: Path | None
    objects: Sequence[str] | None  # names; None: all
    metrics: Metrics
    size: int | None  # pixels both ways that all pictures are brought to; None: as they are
    input_view: int | None  # left out of the figures NAME_unseen; None: as a run says
    compare_to: Path | None  # another evaluation
    folder: Path
    seed: int  # of the bootstrap
    devices: Devices

    @property
    def resize(self) -> features.Resize | None:
        """How pictures come to `size`."""
        if self.size is None:
            return None
        return features.Resize(self.size, "bicubic", antialias=True, crop=False)


def evaluate(job: EvaluateJob) -> int:
    """Run the job. Returns the exit code: 0, or 3 if objects were left out."""
    sampled, truth = job.sampled, job.truth
    suite = load_suite(job.metrics, "cpu")
    _check_truth(job.metrics.names, len(sampled), truth)
    chosen = card.choices(suite, resize=job.resize, input_view=job.input_view)
    other = read_evaluation(job.compare_to) if job.compare_to else None
    if other is not None and (unlike := card.differing(chosen, other.choices)):
        raise InputError(
            f"compare_to={job.compare_to}: made otherwise: {', '.join(unlike)}; evaluate both alike"
        )
    needs_truth = bool(NEED_TRUTH & set(suite.metrics))
    found = find_objects(sampled, truth, needs_truth=needs_truth, names=job.objects)
    kept, failures = predict(job, suite, found, chosen)
    if rank_zero_only.rank:  # Lightning kills all processes when one of them exits with a code
        return 0
    for line in failures:
        say(f"d2: left out: {line}")
    folder = job.folder
    if not kept:
        _leave_nothing(folder)
        raise InputError(
            f"{', '.join(map(str, sampled))}: no object can be evaluated; mend what is said above"
        )
    figures = [figure for each in kept.values() for figure in each.figures]
    figures += set_figures([each.features for each in kept.values()], suite, seed=job.seed)
    figures = with_origin(figures, found.objects, sampled)
    write_figures(folder / "results.csv", figures, EVALUATED)
    facts = about(job.seed, found.objects, kept, failures)
    write_json(
        folder / "card.json", {"choices": chosen, "versions": card.versions(), "data": facts}
    )
    differences = {} if other is None else compared_sets(job, kept, other, suite)
    sizes = set_sizes(kept)
    text = summary(figures, other, differences, set_sizes=sizes, left_out=failures, seed=job.seed)
    write_text(folder / "summary.md", text)
    print(text, end="")
    return 3 if failures else 0


def predict(
    job: EvaluateJob, suite: Suite, found: Found, chosen: dict[str, Any]
) -> tuple[dict[str, Measured], list[str]]:
    """One predict loop over the objects: what is finished afterwards, and one line for each object
    that is not."""
    folder, kept, failures = job.folder, {}, list(found.failures)
    if not found.objects:
        return kept, failures
    keys = [card.key_of(chosen, card.versions(), files_state(each)) for each in found.objects]
    trainer = make_trainer(job.devices, folder, [], [])
    ensure_writable(folder / "objects")
    loader = DataLoader(range(len(keys)), batch_size=None)  # type: ignore[arg-type]
    trainer.predict(Evaluator(job, suite, found.objects, keys), loader, return_predictions=False)
    for each, key in zip(found.objects, keys, strict=True):
        result = read_kept(folder, each.name, key)
        assert result is not None, f"{each.name}: no rank measured it"
        if isinstance(result, str):
            failures.append(f"{each.name}: {result}")
        else:
            kept[each.name] = result
    return kept, failures


class Evaluator(L.LightningModule):
    """The predict loop over objects; a batch is an object's index."""

    def __init__(self, job: EvaluateJob, suite: Suite, objects: list[Candidate], keys: list[str]):
        super().__init__()
        self.job, self.suite, self.objects, self.keys = job, suite, objects, keys

    def on_predict_start(self) -> None:
        if self.device.type != "cpu":
            self.suite = load_suite(self.job.metrics, self.device)

    def predict_step(self, batch: int, batch_idx: int) -> None:
        if batch % self.trainer.world_size != self.trainer.global_rank:
            return
        each, key = self.objects[batch], self.keys[batch]
        folder = self.job.folder
        path = folder / "objects" / f"{each.name}.json"
        if isinstance(read_kept(folder, each.name, key), Measured):
            return
        say(f"evaluating {each.name} ({batch + 1} of {len(self.objects)})")
        try:
            result = measured(each, self.suite, self.job, self.device)
        except ValueError as error:  # of this object's files; the others are evaluated all the same
            write_json(path, {"key": key, "failure": " ".join(str(error).split())})
            return
        write_tensors(path.with_name(f"{each.name}.safetensors"), result.features, {"key": key})
        rows = [(figure.sample, figure.metric, figure.value) for figure in result.figures]
        # last: it says that all is there
        write_json(path, {"key": key, "shape": result.shape, "rows": rows})

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("evaluated")


def measured(each: Candidate, suite: Suite, job: EvaluateJob, device: torch.device) -> Measured:
    """Read and measure one object; a ValueError says what is wrong with its pictures."""
    resize = job.resize
    samples = [_fitted(read_sample(folder), resize) for folder in each.samples]
    true = None if each.truth is None else _fitted(read_true(each.truth), resize)
    first = samples[0].pixels.shape
    for pictures in (*samples, *([] if true is None else [true])):
        shape = pictures.pixels.shape
        if shape[:2] != first[:2]:
            raise InputError(f"{_grid(shape)} beside {_grid(first)}; they must have the same")
        if shape != first:
            sizes = f"{shape[-1]}×{shape[-2]} beside {first[-1]}×{first[-2]}"
            raise InputError(f"pictures of {sizes}; bring both to one with size=N")
    input_view = samples[0].input_view if job.input_view is None else job.input_view
    if input_view is not None and input_view >= first[0]:
        raise InputError(f"input_view={input_view}: there are views 0 to {first[0] - 1}")
    truth = None if true is None else _truth(true, device)
    centred = all(layout_of(folder) == "ours" for folder in each.samples)
    has_depth = true is not None and true.depth is not None
    cameras = read_matrix(each.samples[0]).cameras if centred else None
    if "self_psnr" in suite.metrics and cameras is None:
        raise InputError("metrics=[self_psnr]: wants cameras, as runs of d2 have; leave it out")
    if suite.places is not None and (cameras is None or not has_depth):
        raise InputError(
            "metrics=[features_3d]: wants cameras and true depth, as runs on world4d have; leave"
            " it out"
        )
    return measure(
        [sample.pixels.to(device) for sample in samples],
        truth,
        suite,
        true={} if truth is None else encoded(truth.pixels, suite),
        masked=true is not None and true.masks is not None,
        input_view=input_view,
        pairs=seen_pairs(suite, truth, cameras if has_depth else None),
        cameras=cameras,
        refit=fitted_matrix,
        scene=each.name,
    )


# --- what is kept, and what is written ------------------------------------------------------------


def files_state(each: Candidate) -> list[tuple[str, int, int]]:
    """What tells an object's files from others: name, size and time of each."""
    folders = [(folder, False) for folder in each.samples] + (
        [(each.truth, True)] if each.truth else []
    )
    files = [file for folder, is_truth in folders for file in files_of(folder, truth=is_truth)]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def read_kept(folder: Path, name: str, key: str) -> Measured | str | None:
    """What was measured under this key, or the line that says why it could not be; None if neither
    is there."""
    path = folder / "objects" / f"{name}.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["key"] != key:
        return None
    if "failure" in kept:
        return kept["failure"]
    figures = [
        Figure(scene=name, sample=sample, metric=metric, value=math.nan if value is None else value)
        for sample, metric, value in kept["rows"]
    ]
    return Measured(figures, load_file(path.with_name(f"{name}.safetensors")), tuple(kept["shape"]))


def with_origin(
    figures: Sequence[Figure], objects: Sequence[Candidate], sampled: Sequence[Path]
) -> list[Figure]:
    """The figures with the folders that they are of, and with the configuration and the weights
    that a run states."""
    name = "+".join(folder.resolve().name for folder in sampled)
    config = sampled[0] / "config.yaml"
    config = (
        hash_of(deciding(config.read_text(encoding="utf-8")))
        if len(sampled) == 1 and config.exists()
        else ""
    )
    files = {each.name: each.samples[0] / "matrix.safetensors" for each in objects}
    weights = {
        scene: weights_hash(read_metadata(file)) for scene, file in files.items() if file.exists()
    }
    if len(set(weights.values())) == 1:
        weights[ALL] = next(iter(weights.values()))
    made = {"run": name, "variant": name, "config": config, "commit": commit()}
    return [replace(figure, **made, weights=weights.get(figure.scene, "")) for figure in figures]


def compared_sets(
    job: EvaluateJob, kept: dict[str, Measured], other: Evaluation, suite: Suite
) -> dict[str, Interval]:
    """The distances between sets minus those of another evaluation, over the objects that both
    have."""
    assert job.compare_to is not None
    files = {name: job.compare_to / "objects" / f"{name}.safetensors" for name in kept}
    both = [name for name in kept if name in other.objects and files[name].is_file()]
    return set_differences(
        [kept[name].features for name in both],
        [load_file(files[name]) for name in both],
        suite,
        seed=job.seed,
    )


def about(
    seed: int, objects: list[Candidate], kept: dict[str, Measured], failures: list[str]
) -> dict[str, Any]:
    """What the numbers were measured on; where it lay is nobody's business."""
    names = ("views", "frames", "height", "width")
    shapes = sorted({tuple(each.shape) for each in kept.values()})
    layouts = sorted({str(layout_of(folder)) for each in objects for folder in each.samples})
    truths = sorted({str(layout_of(each.truth)) for each in objects if each.truth})
    return {
        "objects": len(kept),
        "samples_of_each": len(objects[0].samples),
        "shapes": [dict(zip(names, shape, strict=True)) for shape in shapes],
        "layouts": {"samples": layouts, "truth": truths},
        "set_sizes": set_sizes(kept),
        "bootstrap_seed": seed,
        "left_out": failures,
    }


def set_sizes(kept: dict[str, Measured]) -> dict[str, int]:
    """Members of every set, by its name; of the truth only where every object has it."""
    parts = [each.features for each in kept.values()]
    common = sorted(name for name in parts[0] if all(name in part for part in parts))
    return {name: sum(len(part[name]) for part in parts) for name in common}


# --- helpers --------------------------------------------------------------------------------------


def _check_truth(metrics: Sequence[str], count: int, truth: Path | None) -> None:
    if truth is None and (needing := sorted(NEED_TRUTH & set(metrics))):
        raise InputError(f"truth=null: metrics=[{', '.join(needing)}] need it; give truth=FOLDER")
    if "energy" in metrics and count < 2:
        raise InputError(
            "metrics=[energy]: needs two samples of every object or more; give run=[FOLDER,FOLDER]"
        )


def _fitted(pictures: Pictures, resize: features.Resize | None) -> Pictures:
    if resize is None:
        return pictures

    def brought(layer: Tensor) -> Tensor:
        return features.fit(layer.flatten(0, 1), resize).clamp(0, 1).unflatten(0, layer.shape[:2])

    masks = None if pictures.masks is None else brought(pictures.masks)
    return Pictures(brought(pictures.pixels), masks, None, pictures.input_view)


def _truth(pictures: Pictures, device: torch.device) -> Truth:
    pixels = pictures.pixels.to(device)
    whole = torch.ones_like(pixels[:, :, :1])
    masks = whole if pictures.masks is None else pictures.masks.to(device)
    return Truth(pixels, masks, whole if pictures.depth is None else pictures.depth.to(device))


def _grid(shape: Iterable[int]) -> str:
    num_views, num_frames, *_ = shape
    return f"{num_views} views × {num_frames} frames"


def _leave_nothing(folder: Path) -> None:
    """An evaluation of nothing leaves no folder behind, unless an earlier one filled it."""
    if folder.exists() and not (folder / "results.csv").exists():
        shutil.rmtree(folder / "objects", ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
