import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gab.models.qkv import split_heads


class Copies(TorchDispatchMode):
    """Counts results of `numel` elements that lie in memory of their own."""

    def __init__(self, numel: int):
        super().__init__()
        self.numel, self.seen = numel, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.numel and not func.is_view:
            self.seen += 1
        return result


def by_permutation(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return tuple(qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4))


def test_three_views_and_one_copy_of_their_gradients() -> None:
    torch.manual_seed(0)
    batch, tokens, heads, depth = 2, 5, 3, 4
    upstream = [torch.randn(batch, tokens, heads, depth).transpose(1, 2) for _ in range(3)]  # as attention leaves them
    seen = []
    for split in (split_heads, by_permutation):
        qkv = torch.arange(batch * tokens * 3 * heads * depth).float().view(batch, tokens, -1).requires_grad_()
        parts = split(qkv, heads)
        assert {part.untyped_storage().data_ptr() for part in parts} == {qkv.data_ptr()}
        with Copies(qkv.numel()) as copies:
            torch.autograd.backward(parts, upstream)
        seen.append((parts, qkv.grad, copies.seen))
    (ours, gradient, copies), (others, expected, _) = seen
    for part, other in zip(ours, others, strict=True):
        assert torch.equal(part, other)
        assert part.stride() == other.stride()
    assert torch.equal(gradient, expected)
    assert copies == 1
    assert seen[1][2] > 1
