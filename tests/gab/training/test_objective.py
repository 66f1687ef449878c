import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode

from gab.augment import Targets
from gab.training.objective import Objective, mixed_binary_cross_entropy, mixed_cross_entropy


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_as_against_timm_dense_targets(smoothing: float) -> None:
    logits, labels = torch.randn(8, 10, requires_grad=True), torch.randint(10, (8,))
    targets = Targets(labels, labels.flip(0), torch.full((8,), 0.37))
    dense = mixup_target(labels, 10, lam=0.37, smoothing=smoothing)
    ours, theirs = mixed_cross_entropy(logits, targets, smoothing), SoftTargetCrossEntropy()(logits, dense)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_loss_reads_logits_once() -> None:
    """One softmax for both labels and the smoothing, in float32 whatever the logits are."""

    class Softmaxes(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func.overloadpacket is torch.ops.aten._log_softmax
            return func(*args, **(kwargs or {}))

    logits = torch.randn(8, 10).bfloat16()
    targets = Targets(torch.arange(8), torch.arange(8).flip(0), torch.rand(8))
    with Softmaxes() as softmaxes:
        loss = mixed_cross_entropy(logits, targets, 0.1)
    assert softmaxes.seen == 1
    assert torch.equal(loss, mixed_cross_entropy(logits.float(), targets, 0.1))


def test_binary_cross_entropy_by_hand() -> None:
    """Both classes of a mixed image are wanted wholly; a partner without a share is not wanted."""
    logits = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0], [0.2, 0.4, 0.6]])
    targets = Targets(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), torch.tensor([0.7, 1.0, 0.3]))
    wanted = [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    losses = [
        softplus(-z) if own else softplus(z)
        for row, flags in zip(logits.tolist(), wanted, strict=True)
        for z, own in zip(row, flags, strict=True)
    ]
    assert mixed_binary_cross_entropy(logits, targets).item() == pytest.approx(sum(losses) / 9)


def test_a_share_of_zero_is_none() -> None:
    """Mixing may leave nothing of the image itself."""
    logits = torch.tensor([[0.3, -0.7]])
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0]))
    wanted = torch.tensor([[0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits, wanted)
    assert torch.equal(mixed_binary_cross_entropy(logits, targets), expected)


def test_the_config_chooses_the_loss() -> None:
    logits, images = torch.randn(4, 5), torch.zeros(4, 3, 2, 2)
    targets = Targets(torch.arange(4), torch.arange(4).flip(0), torch.full((4,), 0.8))
    smoothed = Objective("ce", 0.1)(logits, targets, images)
    assert torch.equal(smoothed, mixed_cross_entropy(logits, targets, 0.1))
    assert not torch.equal(smoothed, Objective("ce", 0.0)(logits, targets, images))
    assert torch.equal(Objective("bce", 0.0)(logits, targets, images), mixed_binary_cross_entropy(logits, targets))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_kernels_give_the_same(loss: str) -> None:
    logits, images = torch.randn(4, 5, requires_grad=True), torch.zeros(4, 3, 2, 2)
    targets = Targets(torch.arange(4), torch.arange(4).flip(0), torch.rand(4))
    losses = [
        Objective(loss, 0.1 * (loss == "ce"), compile=compile)(logits, targets, images) for compile in (False, True)
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(one, logits)[0] for one in losses))
