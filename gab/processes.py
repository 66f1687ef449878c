"""Processes of a run: started by ourselves on one node, or given by torchrun or srun on several.

Everything collective goes through `Processes`, so that a single process pays nothing for it.
"""

import logging
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gab.errors import UserError

USER_ERROR = 2  # exit code
PATIENCE = timedelta(hours=1)  # one node may still copy its data while another waits


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


def choose_device(wish: str) -> str:
    """`cuda` or `cpu` for `run.device`."""
    if wish not in ("auto", "cuda", "cpu"):
        raise UserError(f"run.device={wish} is unknown: choose auto, cuda or cpu")
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "run.device=cuda, but PyTorch sees no CUDA device here: use run.device=auto, or check nvidia-smi"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish


def given_ranks() -> tuple[int, int, int, int] | None:
    """(rank, count, local rank, local count) from torchrun or srun, or None where neither started us."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, count, local, local_count = (int(env.get(name, 0)) for name in names)
        return rank, count, local, local_count or 1
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not by sbatch
        tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        return int(env["SLURM_PROCID"]), tasks, int(env["SLURM_LOCALID"]), tasks // nodes
    return None


def count_processes(wish: str, device: str) -> int:
    """How many processes the run has (`run.processes`), before any is started."""
    given = given_ranks()
    if given:
        return given[1]
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


def _join(rank: int, count: int, local_rank: int, local_count: int, device: str) -> Processes:
    """Enter the process group (environment variables name the meeting point)."""
    place = torch.device("cpu")
    if device == "cuda":
        place = torch.device(device, local_rank % torch.cuda.device_count())  # a task of srun may see only its own
        torch.cuda.set_device(place)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32; bf16 is asked for by autocast
    elif count > 1:
        torch.set_num_threads(cores_per_process(local_count))
    if count > 1:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            rank=rank,
            world_size=count,
            device_id=place if device == "cuda" else None,
            timeout=PATIENCE,
        )
    return Processes(rank, count, local_rank, local_count, place)


def _child(
    local_rank: int, count: int, device: str, work: Callable[..., None], args: tuple[Any, ...], sentences: Any
) -> None:
    """What a process that we started does; what a user can mend goes to the parent as a sentence."""
    try:
        work(_join(local_rank, count, local_rank, count, device), *args)
    except ValueError as error:
        if not is_user_error(error):
            raise
        sentences.put(str(error))
        os._exit(USER_ERROR)  # without waiting for the others, who may wait for us
    except KeyboardInterrupt:
        os._exit(130)  # the parent has been told too, and speaks
    dist.destroy_process_group()


def is_user_error(error: Exception) -> bool:
    """Whether the error is for people: one of either wing's `errors` module."""
    return type(error).__module__ in ("gab.errors", "data.errors")


def launch(work: Callable[..., None], args: tuple[Any, ...], *, count: int, device: str) -> None:
    """Run `work(processes, *args)` in every process of the run; returns when all have ended.

    Raises:
        UserError: what a process that we started found wrong, or that it was killed.
    """
    given = given_ranks()
    if given:
        _meeting_point_from_slurm()
        work(_join(*given, device), *args)
        if dist.is_initialized():
            dist.destroy_process_group()
    elif count == 1:
        work(_join(0, 1, 0, 1, device), *args)
    else:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # the end of the others is no news
        sentences = mp.get_context("spawn").SimpleQueue()
        try:
            mp.spawn(_child, (count, device, work, args, sentences), nprocs=count)
        except mp.ProcessExitedException as error:  # the others have been ended
            if sentences.empty():
                raise UserError(f"process {error.error_index} of the run ended with code {error.exit_code}") from error
            raise UserError(sentences.get()) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _meeting_point_from_slurm() -> None:
    """srun gives ranks but no address: rank 0 runs on the step's first node; the port comes from job and step."""
    env = os.environ
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return
    hosts = env.get("SLURM_STEP_NODELIST", "")
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
        env["MASTER_ADDR"] = shown.stdout.split()[0]
        env["MASTER_PORT"] = str(20000 + (int(env["SLURM_JOB_ID"]) + 97 * int(env["SLURM_STEP_ID"])) % 20000)
    except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        raise UserError(
            f"cannot tell on which node of {hosts or 'this job'} the first process runs ({error}): "
            "export MASTER_ADDR and MASTER_PORT before srun"
        ) from error
