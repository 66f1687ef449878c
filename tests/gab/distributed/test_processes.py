import os

import pytest
import torch

from gab.distributed import processes
from gab.distributed.processes import Processes, Ranks, choose_device, count_processes, given_ranks
from gab.errors import UserError

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


def test_on_cpu() -> None:
    assert given_ranks() is None
    assert count_processes("auto", "cpu") == 1
    assert count_processes("3", "cpu") == 3


def test_one_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_processes("auto", "cuda") == 4
    assert count_processes("2", "cuda") == 2
    with pytest.raises(UserError, match="run.processes=5, but 4 GPUs"):
        count_processes("5", "cuda")


def test_torchrun_gives_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(RANKS, ("5", "8", "1", "4")):
        monkeypatch.setenv(name, value)
    assert given_ranks() == Ranks(5, 8, 1, 4)
    assert count_processes("auto", "cpu") == 8


def test_srun_gives_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"STEP_NUM_TASKS": "8", "STEP_NUM_NODES": "2", "PROCID": "5", "LOCALID": "1"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert given_ranks() == Ranks(5, 8, 1, 4)


@pytest.mark.parametrize(("local_rank", "order"), [(0, ["fetches", "barrier"]), (1, ["barrier", "fetches"])])
def test_the_first_of_a_node_goes_before_its_others(local_rank: int, order: list[str]) -> None:
    done: list[str] = []

    class Watched(Processes):
        def barrier(self) -> None:
            done.append("barrier")

    with Watched(rank=4 + local_rank, count=8, local_rank=local_rank).in_turn():
        done.append("fetches")
    assert done == order


def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert processes.cores_per_process(4) == 2
    assert processes.cores_per_process(16) == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")  # of this task: nothing to divide
    assert processes.cores_per_process(4) == 8


@pytest.mark.parametrize("wish", ["0", "-1", "two", "1.5"])
def test_impossible_numbers(wish: str) -> None:
    with pytest.raises(UserError, match=f"run.processes={wish}"):
        count_processes(wish, "cpu")


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(UserError, match="run.device=cuda, but PyTorch sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(UserError, match="run.device=tpu is unknown"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
