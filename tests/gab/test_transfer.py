"""Packing of small tensors; the copy itself needs a GPU."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gab.transfer import pack, to_device, unpack


class Pair(NamedTuple):
    first: Tensor
    second: tuple[Tensor, ...]


TENSORS = [
    torch.arange(7),
    torch.tensor([True, False, True]),
    torch.randn(3, 5),
    torch.zeros(0, 4, dtype=torch.int64),
    torch.randint(256, (2, 1, 9), dtype=torch.uint8),
    torch.randn(4, 3).double().T,
    torch.tensor(2.5),
]


def test_every_tensor_comes_back() -> None:
    memory = pack(TENSORS)
    for given, found in zip(TENSORS, unpack(memory, TENSORS), strict=True):
        assert torch.equal(given, found)
        assert (given.dtype, given.shape) == (found.dtype, found.shape)
        if given.numel():
            assert memory.data_ptr() <= found.data_ptr() < memory.data_ptr() + len(memory)  # not copied
            assert (found.data_ptr() - memory.data_ptr()) % 16 == 0
            assert found.storage_offset() == 0
            assert not found._is_view()


def test_memory_lives_as_long_as_what_lies_in_it() -> None:
    found = unpack(pack(TENSORS), TENSORS)[0]
    [torch.full((1000,), 9) for _ in range(99)]
    assert torch.equal(found, torch.arange(7))


def test_on_the_cpu_nothing_moves() -> None:
    tree = Pair(TENSORS[0], tuple(TENSORS[1:]))
    assert to_device(tree, torch.device("cpu")) is tree


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_tree_keeps_its_form() -> None:
    tree = [Pair(TENSORS[0], tuple(TENSORS[1:])), 7, (), None]
    [pair, *rest] = to_device(tree, torch.device("cuda"), torch.cuda.current_stream())
    assert isinstance(pair, Pair)
    assert rest == [7, (), None]
    for given, found in zip(TENSORS, (pair.first, *pair.second), strict=True):
        assert found.is_cuda
        assert torch.equal(given, found.cpu())
