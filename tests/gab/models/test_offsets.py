import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from gab.models.offsets import spread_offsets
from gab.models.relative import RelPosBias

GRIDS = [(1, 1), (1, 4), (3, 5), (5, 3), (8, 8)]


def index(grid: tuple[int, int]) -> Tensor:
    """Row of the table for every pair, by the definition: (N, N)."""
    h, w = grid
    places = [(r, c) for r in range(h) for c in range(w)]
    return torch.tensor([[(r - s + h - 1) * (2 * w - 1) + c - d + w - 1 for s, d in places] for r, c in places])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients(grid: tuple[int, int], dtype: torch.dtype) -> None:
    """Values are copies. Sums of half-precision gradients are rounded once."""
    torch.manual_seed(0)
    rows, heads = (2 * grid[0] - 1) * (2 * grid[1] - 1), 3
    table = torch.randn(rows, heads, dtype=dtype, requires_grad=True)
    bias = spread_offsets(table, grid)
    assert bias.is_contiguous()
    assert torch.equal(bias, table[index(grid)].permute(2, 0, 1).unsqueeze(0))
    upstream = torch.randn(bias.shape, dtype=dtype)
    bias.backward(upstream)
    sums = torch.zeros(rows, heads, dtype=torch.float64)
    sums.index_add_(0, index(grid).flatten(), upstream[0].permute(1, 2, 0).flatten(0, 1).double())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 0.0}[dtype]
    assert torch.allclose(table.grad, sums.to(dtype), rtol=0, atol=tolerance)


def test_gradients_of_views_and_of_gradients() -> None:
    """The kernels of `gab.attention` leave a slice of rows that are filled up; one bias may be expanded."""
    table = torch.randn(15, 2, dtype=torch.float64, requires_grad=True)
    wide = torch.randn(1, 2, 6, 64, dtype=torch.float64)
    for upstream in (wide[..., :6], torch.ones(1, 2, 1, 1, dtype=torch.float64).expand(1, 2, 6, 6)):
        (found,) = torch.autograd.grad(spread_offsets(table, (2, 3)), table, upstream)
        (expected,) = torch.autograd.grad(spread_offsets(table, (2, 3)), table, upstream.clone())
        assert torch.equal(found, expected)
    assert torch.autograd.gradcheck(lambda t: spread_offsets(t, (2, 3)), table)
    assert torch.autograd.gradgradcheck(lambda t: spread_offsets(t, (2, 3)), table)


class Named(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_is_scattered() -> None:
    """Whose order of adding up is anybody's guess on a GPU; with a class token too, and where it is compiled."""
    part = RelPosBias((3, 4), 2, prefix_tokens=1)
    with Named() as eager:
        part().square().sum().backward()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiler = aot_autograd(fw_compiler=keep)
    torch.compile(part, backend=compiler, fullgraph=True)().square().sum().backward()
    compiled = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert "sum" in eager.names
    assert len(graphs) == 2
    for name in (eager.names | compiled) - {"aten.slice_scatter.default"}:  # a copy into a part of a tensor
        assert not any(word in name for word in ("scatter", "index", "gather", "unfold_backward")), name
