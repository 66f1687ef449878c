import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from gab.config import ViTConfig
from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.models import build
from gab.models.stochastic import attach_keys
from gab.training.ddp import distributed

TINY = ViTConfig(base="v", patch_size=8, embed_dim=24, depth=1, num_heads=3, rel_pos="bias", gab=True)
COUNT = 4  # images of a process, in two micro-batches


def images(rank: int, step: int) -> Tensor:
    return torch.randn(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(10 * step + rank))


def train(processes: Processes, folder: Path) -> None:
    """Two steps of SGD by hand; leaves the gradients of both, and in how many places they lie."""
    model = build(TINY, image_size=16, num_classes=2, seed=0).train()
    network: nn.Module = model
    if processes.count > 1:
        keys = attach_keys(model, 0, processes.device)
        network = distributed(model, keys, processes.device, count=COUNT // 2, image_size=16, bf16=False)
    gradients = []
    for step in range(2):
        if processes.count > 1:
            first, second = images(processes.rank, step).split(COUNT // 2)
            with network.no_sync():  # type: ignore[operator]
                network(first).square().sum().backward()
            network(second).square().sum().backward()
        else:
            torch.cat([network(images(rank, step)) for rank in (0, 1)]).square().sum().div(2).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        places = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model.zero_grad(set_to_none=True)
    torch.save((gradients, len(places)), folder / f"{processes.count}_{processes.rank}.pt")


def test_gradients_are_means_and_lie_where_they_are_exchanged(forking: None, tmp_path: Path) -> None:
    launch(train, (tmp_path,), count=2, device="cpu")
    train(Processes(), tmp_path)
    expected, places = torch.load(tmp_path / "1_0.pt")
    assert places == len(expected[0])
    for rank in (0, 1):
        found, places = torch.load(tmp_path / f"2_{rank}.pt")
        assert places == 1  # of a network that fits into one bucket
        for ours, theirs in zip(*(itertools.chain(*both) for both in (found, expected)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
