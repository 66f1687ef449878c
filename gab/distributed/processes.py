"""Processes of a run: which this one is, on which device, and how it speaks with the others.

Everything collective goes through `Processes`, so that a single process pays nothing for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gab.distributed.heartbeat import LIMITS, Heartbeat
from gab.errors import UserError, check_choice

# How long a collective waits. The heartbeat judges long before, and says which process is to blame.
PATIENCE = timedelta(seconds=2 * max(LIMITS.values()))


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those of the run and those of its node."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


@dataclass(frozen=True)
class Processes(Ranks):
    """This process among those of the run, and what it needs to work with them.

    Attributes:
        control: a process group of the host, also where tensors go through NCCL; None for a single process.
        heartbeat: to be told where this process is.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: dist.ProcessGroup | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Wait until all processes have come here; the devices may still compute."""
        if self.count > 1:
            dist.barrier(group=self.control)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each node goes through the block before its others, which find what it has fetched."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


def choose_device(wish: str) -> str:
    """`cuda` or `cpu` for `run.device`."""
    check_choice("run.device", wish, ("auto", "cuda", "cpu"))
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "run.device=cuda, but PyTorch sees no CUDA device here: use run.device=auto, or check nvidia-smi"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish


def given_ranks() -> Ranks | None:
    """The place that torchrun or srun gave to this process, or None where neither started us."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, count, local, local_count = (int(env.get(name, 0)) for name in names)
        return Ranks(rank, count, local, local_count or 1)
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not by sbatch
        tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        return Ranks(int(env["SLURM_PROCID"]), tasks, int(env["SLURM_LOCALID"]), tasks // nodes)
    return None


def count_processes(wish: str, device: str) -> int:
    """How many processes the run has (`run.processes`), before any is started."""
    given = given_ranks()
    if given:
        return given.count
    if wish == "auto":
        return torch.cuda.device_count() if device == "cuda" else 1
    if not wish.isdigit() or int(wish) < 1:
        raise UserError(f"run.processes={wish}: give a number of processes, or auto")
    if device == "cuda" and int(wish) > torch.cuda.device_count():
        raise UserError(f"run.processes={wish}, but {torch.cuda.device_count()} GPUs are visible: lower it or use auto")
    return int(wish)


def cores_per_process(local_count: int) -> int:
    """This process's share of the node's cores: what SLURM gave to the task, else an equal part of those it may use."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdigit() and "SLURM_STEP_NUM_TASKS" in os.environ:
        return int(given)
    return max(len(os.sched_getaffinity(0)) // local_count, 1)


def loader_options(processes: Processes, workers: int | None) -> dict[str, Any]:
    """This process's part in reading data, as keywords of the data wing; `workers` null: its share of cores."""
    return {
        "rank": processes.rank,
        "processes": processes.count,
        "workers": workers or cores_per_process(processes.local_count),
        "pin": processes.device.type == "cuda",
    }


def join(ranks: Ranks, device: str, store: dist.Store | None = None, heartbeat: Heartbeat | None = None) -> Processes:
    """Take the device of this process, and enter the process group.

    Args:
        store: where the processes meet; None for a single process.
        heartbeat: that others listen to; None for a single process.
    """
    place = torch.device("cpu")
    if device == "cuda":
        place = torch.device(device, ranks.local_rank % torch.cuda.device_count())  # a task may see only its own
        torch.cuda.set_device(place)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32; bf16 is asked for by autocast
    elif ranks.count > 1:
        torch.set_num_threads(cores_per_process(ranks.local_count))
    control: dist.ProcessGroup | None = None
    if store is not None:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.count,
            device_id=place if device == "cuda" else None,
            timeout=PATIENCE,
        )
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        control = group
    return Processes(**asdict(ranks), device=place, control=control, heartbeat=heartbeat or Heartbeat())
