"""The runs of a command line of `d2 sample`: one, or one a variant and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from d2.config import command_line
from d2.config.checks import check
from d2.config.command_line import RULES, Composed
from d2.data.sources import SceneSource
from d2.errors import InputError
from d2.job import BASELINES, Job
from d2.resolve import make_rules, resolve
from d2.rules.bundle import Rules

FREE = {  # what variants may change; all else they share
    *("sampler", "unary", "particles", "baselines", "variants", "seeds", "compare_to"),
    *RULES,
}


def runs_of(composed: Composed) -> list[Job]:
    """Resolve a command line to its jobs, those of a seed together; an InputError names what cannot
    be compared."""
    config, label = composed.config, composed.label
    base = resolve(config, composed.text, composed.name, label)
    is_study = bool(config.variants or config.seeds)
    if config.reconstruct is True and (is_study or composed.swept):
        raise InputError(
            "reconstruct=true: a study and a sweep make no scenes; run d2 reconstruct run=DIR on"
            " what they leave"
        )
    if not is_study:
        published = _published(config, base) if base.baselines else None
        return [replace(base, published=published)]
    variants = config.variants or {composed.name: []}
    for name in variants:
        if name.startswith((".", "/")) or "/." in name:
            raise InputError(f"variants.{name}: a folder is named after it; give another name")
    _check_study(config.metrics, config.seeds, base.source)
    known = [*variants, *(BASELINES if base.baselines else ())]
    if config.compare_to is not None and config.compare_to not in known:
        raise InputError(
            f"compare_to={config.compare_to}: choose one of the variants, {', '.join(known)}"
        )
    first, jobs = next(iter(variants)), []
    for seed in config.seeds or [config.seed]:
        for variant, more in variants.items():
            baselines = base.baselines and variant == first  # they are the same for all variants
            own = _composed([*composed.overrides, f"seed={seed}", *more, f"baselines={baselines}"])
            parts = [variant] * bool(config.variants) + [f"seed_{seed}"] * bool(config.seeds)
            name = "/".join([label.name] * bool(label.group) + parts)
            called = label._replace(name=name, group=label.group or base.folder.name)
            job = resolve(own.config, own.text, variant, called)
            _check_variant(job, {**base.told, "seed": seed})
            shared = {"networks": base.networks, "reference": base.reference, "assets": None}
            jobs.append(replace(job, folder=base.folder.joinpath(*parts), **shared))
    return jobs


def _published(own: Any, job: Job) -> Rules | None:
    """Bind the published rule for as many steps as the job has, the first fifth of them repeated;
    None where the job's own rules are these."""
    first_fifth = -(-job.settings.num_steps // 5)
    line = ["preset=official_short", f"renoise.steps={first_fifth}"]
    nodes, rules = (
        {key: getattr(config, key) for key in RULES}
        for config in (own, command_line.composed("sample", line).config)
    )
    return None if nodes == rules else make_rules(rules, job.settings, job.size)


def _composed(overrides: Sequence[str]) -> Composed:
    """A variant, which does not depend on the others."""
    node = command_line.compose_command("sample", overrides)
    node.variants, node.seeds, node.compare_to = {}, [], None
    one = Composed("sample", node, {}, overrides)
    check(one.config)
    return one


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
