"""Which processes a command is: who started them, which devices and scenes are whose.

`d2` starts them itself (d2/processes.py), or torchrun or srun did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from d2.errors import InputError
from d2.processes import GOOD, free_port, run

POINT = "D2_POINT"  # of the environment: the names of a sweep's point
WORKER = "D2_WORKER"  # and which of how many workers this process is of, and of how many ranks
# of a scene's time, what the ranks that share its matrix do not divide: docs/scaling.md
OF_SCENE = 0.1
OF_POINT = 0.5  # and of a sweep's point, whose processes start anew: 6 s, a tiny scene 8
ROWS = 8  # of a matrix whose prior says how many there are, at least


def is_launched() -> bool:
    """Whether this is one of several processes already, whoever started them: d2, torchrun or
    srun."""
    return "LOCAL_RANK" in os.environ or is_worker() or in_srun()


def in_srun() -> bool:
    """Whether srun started this process. A batch script has SLURM's other variables too, but is one
    process."""
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def worker() -> tuple[int, int]:
    """Which of how many workers this process is of; of one where scenes are not dealt out."""
    number, count, _ = _worker()
    return number, count


def is_worker() -> bool:
    """Whether `deal` started this process, as one of the ranks of a worker."""
    return WORKER in os.environ


def ranks_of_worker() -> int:
    """How many ranks share each matrix of this worker."""
    return _worker()[2]


def _worker() -> tuple[int, int, int]:
    number, count, ranks = os.environ.get(WORKER, "0/1/1").split("/")
    return int(number), int(count), int(ranks)


def processes(config: Any) -> int:
    """How many processes a command wants to be started as on this node; 0 where there is nothing to
    start."""
    trainer = getattr(config, "trainer", None)
    if (
        trainer is None
        or is_launched()
        or getattr(config, "plan", False)
        or trainer.strategy not in ("auto", "ddp")
    ):
        return 0
    count = device_count(trainer.devices, trainer.accelerator)
    return count if count > 1 or trainer.num_nodes > 1 else 0


def begin(
    command: str, arguments: Sequence[str], config: Any, count: int, point: Any = None
) -> int:
    """Run a command on `count` devices, which share each matrix or are dealt the scenes, in groups
    of ranks where that keeps them busy."""
    trainer, number = config.trainer, 1
    if command == "sample":
        each = max(1, len(config.variants)) * max(1, len(config.seeds))
        units, blocks = each * number_of_scenes(config.scenes), number_of_blocks(config)
        number = number_of_groups(trainer, units, count, blocks, OF_SCENE)
    own = {POINT: json.dumps(point)}
    if number == 1:
        ranks = ranks_of_group(count, trainer.num_nodes)
        return run([command, *arguments], [{**own, **rank} for rank in ranks])
    if trainer.num_nodes > 1:
        raise InputError(
            f"trainer.parallel=scenes, num_nodes={trainer.num_nodes}: scenes are dealt out on"
            " one machine; take a sweep with hydra/launcher=submitit_slurm, or"
            " trainer.parallel=matrix"
        )
    names = names_of(trainer.devices, trainer.accelerator, count)
    return deal([command, *arguments], in_groups(names, number), own)


def number_of_scenes(scenes: Any) -> int:
    """How many scenes a configuration names; an InputError where a folder holds none."""
    if scenes.source == "world4d" or scenes.views:
        return scenes.count or 1
    from d2.data.folder import list_clips  # PyTorch comes with it

    return max(1, len(list_clips(scenes.path)[scenes.first :][: scenes.count]))


def number_of_blocks(config: Any) -> int:
    """Into how many network calls the rows of a matrix fall, which its ranks share."""
    rows = config.matrix.num_views or ROWS
    return -(-rows // (config.sampler.sequences_per_call or rows))


def number_of_groups(trainer: Any, units: int, count: int, blocks: int, alike: float) -> int:
    """Into how many groups of ranks `count` devices fall to be done first with so many scenes or
    points.

    The ranks of a group share each matrix in so many blocks, all but `alike` of the time it takes
    one of them. Of equally fast ways it is the one of the largest groups.
    """
    if trainer.parallel != "auto":
        return count if trainer.parallel == "scenes" else 1
    if trainer.num_nodes > 1:
        return 1

    def time(groups: int) -> float:  # of one scene on one rank
        share = -(-blocks // (count // groups)) / blocks
        return -(-units // groups) * (alike + (1 - alike) * share)

    return min((number for number in range(1, count + 1) if count % number == 0), key=time)


def in_groups(names: Sequence[str], number: int) -> list[list[str]]:
    """Devices in so many groups of as many each."""
    size = len(names) // number
    return [list(names[i * size : (i + 1) * size]) for i in range(number)]


def seen(devices: Sequence[str]) -> dict[str, str]:
    """What lets a process see these devices alone."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices[0] else {}


def names_of(devices: Any, accelerator: str, count: int) -> list[str]:
    """What CUDA calls the devices of a command, so that each worker sees its own; empty on a
    CPU."""
    if accelerator == "cpu":
        return [""] * count
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    chosen = devices if isinstance(devices, list) else range(count)
    return [visible[i] if i < len(visible) else str(i) for i in chosen]


def device_count(devices: Any, accelerator: str) -> int:
    """How many devices Lightning would take for `trainer.devices`."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        import torch

        return 1 if accelerator == "cpu" else max(1, torch.cuda.device_count())
    return devices if isinstance(devices, int) else 1


def ranks_of_group(count: int, num_nodes: int = 1) -> list[dict[str, str]]:
    """What tells so many processes that they are the share of this node in one group.

    An InputError names what several nodes have to be told.
    """
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    if num_nodes > 1:
        missing = [name for name in told if name not in os.environ]
        if missing:
            raise InputError(
                f"trainer.num_nodes={num_nodes}: {', '.join(missing)} must be set, the same address"
                " and port on all nodes, and 0, 1, … on each; or start d2 by srun or torchrun"
            )
        told = {name: os.environ[name] for name in told}
    told["WORLD_SIZE"], first = str(count * num_nodes), int(told["NODE_RANK"]) * count
    return [{**told, "LOCAL_RANK": str(i), "RANK": str(first + i)} for i in range(count)]


def deal(arguments: Sequence[str], groups: Sequence[Sequence[str]], own: Mapping[str, str]) -> int:
    """Run `d2 ARGUMENTS` as a worker a group of devices, each with its share of the scenes; then
    one process makes the tables.

    `groups` hold what CUDA calls the devices, empty on a CPU. The ranks of a worker share each of
    its matrices. Returns the exit code.
    """
    ranks = [
        {**own, **seen(devices), **rank, WORKER: f"{i}/{len(groups)}/{len(devices)}"}
        for i, devices in enumerate(groups)
        for rank in ranks_of_group(len(devices))
    ]
    code = run(arguments, ranks)
    (alone,) = ranks_of_group(1)
    last = {**own, **seen(groups[0][:1]), **alone, WORKER: "0/1/1"}
    return code if code not in GOOD else run(arguments, [last])


def point() -> dict[str, Any] | None:
    """The names of the sweep's point that this process is started for, if it is."""
    return json.loads(os.environ.get(POINT, "null"))
