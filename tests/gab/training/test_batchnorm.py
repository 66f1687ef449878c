from pathlib import Path

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.training import batchnorm, checkpoint
from gab.training.average import Average
from gab.training.state import TrainState


def new_state() -> TrainState:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainState(model, optimizer, Average(model), torch.zeros(()), step=1)


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
    again.step = 2
    again.model[0].running_mean.fill_(2.0 + rank)
    batchnorm.average(again, processes)
    assert seen(again) == [2.5, 5.5]


def test_each_process_goes_on_with_what_it_has_seen(forking: None, tmp_path: Path) -> None:
    launch(save_and_resume, (tmp_path,), count=2, device="cpu")
    state = new_state()
    batchnorm.restore(state, Processes(), checkpoint.load(tmp_path / "last.pt")["statistics"])
    assert seen(state) == [0.0, 0.0]  # another number of processes: as the model of the checkpoint has them
    assert batchnorm.gather(state, Processes()) == []


def stop_in_an_evaluation(processes: Processes) -> None:
    """After the average; what goes on from there averages once more."""
    torch.manual_seed(processes.rank)
    state = TrainState(nn.BatchNorm1d(512), None, None, torch.zeros(()), step=1)
    state.model.running_mean.normal_()
    batchnorm.average(state, processes)
    stored, weights = batchnorm.gather(state, processes), state.model.state_dict()
    again = TrainState(nn.BatchNorm1d(512), None, None, torch.zeros(()), step=1)
    again.model.load_state_dict(weights)
    batchnorm.restore(again, processes, stored)
    batchnorm.average(again, processes)
    assert torch.equal(again.model.running_mean, state.model.running_mean)


def test_the_average_is_not_averaged_again(forking: None) -> None:
    """Of this many equal numbers the mean is another one, by rounding."""
    launch(stop_in_an_evaluation, (), count=6, device="cpu")


def test_what_is_said() -> None:
    two = Processes(count=2)
    assert batchnorm.describe(new_state().model, Processes(), 16) is None
    assert batchnorm.describe(nn.Linear(1, 1), two, 16) is None
    per_process = batchnorm.describe(new_state().model, two, 16)
    assert per_process.startswith("BatchNorm: statistics per process, over 16 images each, averaged after every epoch")
    synchronised = batchnorm.describe(batchnorm.synchronised(new_state().model, two), two, 16)
    assert synchronised == "BatchNorm: statistics synchronised, over 32 images of all processes"


def test_synchronised_is_the_same_network() -> None:
    """Also in networks of timm, whose BatchNorm layers hold the activation."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.ReLU)).eval()
    images = torch.randn(2, 3, 5, 5)
    expected, names = model(images), list(model.state_dict())
    assert batchnorm.synchronised(model, Processes()) is model
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    model = batchnorm.synchronised(model, Processes(count=2))
    assert [isinstance(module, nn.SyncBatchNorm) for module in model] == [False, True, True]
    assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == names
