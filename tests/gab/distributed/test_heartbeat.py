import re
import sys
import threading
import time
import types
from collections.abc import Callable

import pytest
import torch

from gab.distributed import heartbeat
from gab.distributed.heartbeat import LIMITS, Heartbeat, Progress
from gab.distributed.processes import PATIENCE


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for phase, seconds in {"training": 45.0, "saving": 900.0}.items():
        monkeypatch.setitem(LIMITS, phase, seconds)


def test_every_phase_has_its_limit(limits: None) -> None:
    heart = Heartbeat()
    progress = Progress(heart)
    heart.at("saving", 7)
    assert progress.tick(1.0).late == 0
    assert progress.tick(899.0).late == 0
    report = progress.tick(2.0)
    assert (report.phase, report.step, report.late) == ("saving", 7, 901.0)
    assert re.fullmatch(r".*/gab/distributed/heartbeat\.py:\d+ in tick", report.place)  # where we are just now
    heart.at("saving")
    assert progress.tick(1.0).late == 0


def test_slow_steps_have_more_time(limits: None) -> None:
    heart = Heartbeat()
    progress = Progress(heart)
    for step in range(3):
        heart.at("training", step)
        progress.tick(1.0)
        progress.tick(19.0)  # of a step
    heart.at("training", 3)
    progress.tick(0.0)
    assert progress.tick(99.0).late == 0
    assert progress.tick(6.0).late == 105.0


def test_unknown_phase() -> None:
    with pytest.raises(AssertionError, match="sleeping"):
        Heartbeat().at("sleeping")


def test_costs_microseconds() -> None:
    heart = Heartbeat()
    started = time.perf_counter()
    for step in range(10_000):
        heart.at("training", step)
    assert time.perf_counter() - started < 1.0  # 100 µs a call: far too slow, and far from what is seen (0.3 µs)


def test_collectives_wait_longer_than_any_phase() -> None:
    assert PATIENCE.total_seconds() > max(LIMITS.values())


def spin(on: list[int]) -> None:
    while on:
        pass


def wait_in_collective(on: list[int]) -> None:
    sys.modules["torch.distributed.test"].all_reduce(on)


@pytest.mark.parametrize(("work", "waits"), [(spin, False), (wait_in_collective, True)])
def test_who_waits_for_others(work: Callable, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the module of the innermost line; a collective of ours that never ends stands for one of torch."""
    module = types.ModuleType("torch.distributed.test")
    exec("def all_reduce(on):\n    while on: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    on = [1]
    thread = threading.Thread(target=work, args=(on,))
    thread.start()
    time.sleep(0.2)
    frame = sys._current_frames()[thread.ident]
    assert heartbeat.waits_for_others(frame, frame.f_lineno) is waits
    on.clear()
    thread.join()


def test_a_wait_in_our_own_line_counts() -> None:
    """`work.wait()` and `loss.item()` leave no frame of their own."""
    with pytest.raises(RuntimeError) as error:
        torch.ones(2).item()
    assert heartbeat.waits_for_others(error.tb.tb_frame, error.tb.tb_lineno)
