"""What evaluators share: how all processes go through their images, and what is left out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.errors import Unmeasurable, UserError
from gab.evaluators import Conditions, Look, Result, look

BATCHES = [3, 1]  # of each process


def refuse(wanted: bool) -> None:
    if wanted:
        raise Unmeasurable("this batch has no field")


def go_through(processes: Processes, folder: Path) -> None:
    called: list[int] = []
    conditions = Conditions(lambda images: images, processes, between=lambda: called.append(1))
    batches: Any = [(processes.rank, number) for number in range(BATCHES[processes.rank])]
    seen: list[tuple[int, int]] = []
    conditions.visit(batches, "", seen.append)
    assert (seen, len(called)) == (batches, 3)
    for wrong in ((0, 1), (1, 0)):  # of one process alone
        with pytest.raises(Unmeasurable, match="no field"):
            conditions.visit(batches, "", lambda batch, wrong=wrong: refuse(batch == wrong))
    assert len(called) == 9
    assert processes.gather_objects(processes.rank) == [0, 1]  # in step
    (folder / str(processes.rank)).touch()


def test_all_processes_refuse_what_one_cannot_measure(forking: None, tmp_path: Path) -> None:
    launch(go_through, (tmp_path,), count=2, device="cpu")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_left_out() -> None:
    """One evaluator on one kind of weights; what is wrong with anything else is raised."""

    def measure(model: nn.Module, *_: Any) -> Result:
        refuse(model.training)
        return Result({"number": 1.0}, 0)

    def fail(*_: Any) -> Result:
        raise UserError("a setting is wrong")

    images: Any = SimpleNamespace(close=lambda: None)
    networks = {"raw": nn.Linear(1, 1).eval(), "ema": nn.Linear(1, 1)}
    conditions = Conditions(lambda images: images, Processes())
    looks = {"one": Look(measure, images), "two": Look(lambda *_: Result({"number": 2.0}, 0), images)}
    left_out = []
    found = look(looks, networks, conditions, lambda *what: left_out.append((*what[:2], str(what[2]))))
    assert {weights: list(one) for weights, one in found.items()} == {"raw": ["one", "two"], "ema": ["two"]}
    assert left_out == [("one", "ema", "this batch has no field")]
    with pytest.raises(Unmeasurable):
        look(looks, networks, conditions)
    with pytest.raises(UserError, match="a setting"):
        look({"one": Look(fail, images)}, networks, conditions, lambda *what: left_out.append(what))
