import math
from pathlib import Path

import pytest
import torch

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.training.meter import Meter


def fill(meter: Meter, losses: list[float], first: int = 1) -> None:
    for step, loss in enumerate(losses, start=first):
        meter.add(torch.tensor(loss), images=8, step=step)


def test_averages_since_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    meter = Meter(Processes())
    meter.start()
    fill(meter, [1.0, 2.0, 6.0])
    meter.waited, now = 0.5, 102.0
    assert meter.read() == {"loss": 3.0, "images_per_second": 12.0, "data_wait": 0.25, "seconds": 2.0}
    meter.pause()
    now = 1000.0  # an evaluation is no training
    assert meter.read()["seconds"] == 2.0
    meter.reset()
    meter.start()
    fill(meter, [7.0])
    now = 1004.0
    assert meter.read() == {"loss": 7.0, "images_per_second": 2.0, "data_wait": 0.0, "seconds": 4.0}


def test_losses_that_are_not_finite_are_left_out_and_named() -> None:
    meter = Meter(Processes())
    fill(meter, [1.0, 2.0])
    assert meter.first_non_finite() is None
    fill(meter, [math.inf, 3.0, math.nan], first=3)
    assert meter.first_non_finite() == 3
    assert meter.read()["loss"] == 2.0
    meter.reset()
    assert meter.first_non_finite() is None


def test_goes_on_in_the_middle_of_a_row() -> None:
    losses = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    whole, before, after = (Meter(Processes()) for _ in range(3))
    fill(whole, losses)
    fill(before, losses[:7])
    after.load_state_dict(before.state_dict())
    fill(after, losses[7:], first=8)
    assert (after.read()["loss"], after.images) == (whole.read()["loss"], 160)


def resumed(processes: Processes, folder: Path, state: dict) -> None:
    meter = Meter(processes)
    meter.load_state_dict(state)
    meter.add(torch.tensor(4.0 + processes.rank), images=8, step=3)
    assert meter.state_dict()["waited"] == pytest.approx(2.0)
    assert meter.first_non_finite() is None
    if processes.rank == 1:
        meter.add(torch.tensor(math.nan), images=8, step=4)
    else:
        meter.add(torch.tensor(1.0), images=8, step=4)
    loss = meter.read()["loss"]
    assert meter.first_non_finite() == 4
    (folder / str(processes.rank)).write_text(repr(loss))


def test_goes_on_with_another_number_of_processes(forking: None, tmp_path: Path) -> None:
    """Two steps of one process, then two of two processes, one loss of which is left out."""
    one = Meter(Processes())
    fill(one, [1.0, 3.0])
    one.waited = 1.0
    launch(resumed, (tmp_path, one.state_dict()), count=2, device="cpu")
    expected = (2 * (1.0 + 3.0) + 4.0 + 5.0 + 1.0) / (4 * 2 - 1)
    assert {path.read_text() for path in tmp_path.iterdir()} == {repr(expected)}
