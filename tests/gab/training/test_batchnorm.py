from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.training import batchnorm, checkpoint
from gab.training.state import TrainState


def new_state() -> TrainState:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainState(model, optimizer, ModelEmaV3(model), torch.zeros(()))


def seen(state: TrainState) -> list[float]:
    return [model[0].running_mean.item() for model in (state.model, state.ema.module)]


def save_and_resume(processes: Processes, folder: Path) -> None:
    state, rank = new_state(), processes.rank
    state.model[0].running_mean.fill_(1.0 + rank)
    state.ema.module[0].running_mean.fill_(5.0 + rank)
    stored = batchnorm.gather(state, processes)
    if processes.first:
        checkpoint.write(folder / "last.pt", {"statistics": stored})
    processes.barrier()
    stored = checkpoint.load(folder / "last.pt")["statistics"]
    again = new_state()
    batchnorm.restore(again, processes, stored)
    assert seen(again) == [1.0 + rank, 5.0 + rank]
    batchnorm.average(again, processes)
    assert seen(again) == [1.5, 5.5]


def test_each_process_goes_on_with_what_it_has_seen(forking: None, tmp_path: Path) -> None:
    launch(save_and_resume, (tmp_path,), count=2, device="cpu")
    state = new_state()
    batchnorm.restore(state, Processes(), checkpoint.load(tmp_path / "last.pt")["statistics"])
    assert seen(state) == [0.0, 0.0]  # another number of processes: as the model of the checkpoint has them
    assert batchnorm.gather(state, Processes()) == []
