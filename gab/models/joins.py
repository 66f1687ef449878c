"""How an absolute position embedding joins the tokens.

A join is called with the embedding and says, layer by layer, what to add and where (`Placement`).
"""

from typing import Any, NamedTuple

from torch import Tensor, nn


class Placement(NamedTuple):
    """What one layer adds: to its tokens, and to the normalised input of its attention; each (1, N, C) or None."""

    stream: Tensor | None = None
    attention: Tensor | None = None


JOINS: dict[str, type["Join"]] = {}  # by the name that `model.join` chooses them by


class Join(nn.Module):
    """The base of all: `forward` takes the embedding (1, N, C) to one `Placement` per layer.

    A subclass gives its name: `class X(Join, name="x")`.

    Args:
        dim: width C.
        depth: number of layers.
        eps: of its LayerNorms, if it has any.
    """

    per_layer = False  # whether it takes an embedding of its own for every layer, (depth, N, C)

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            JOINS[name] = cls

    def __init__(self, dim: int, depth: int, eps: float):
        super().__init__()
        self.depth = depth

    def forward(self, position: Tensor) -> list[Placement]:
        raise NotImplementedError

    def truncate(self, depth: int) -> None:
        """Keeps what the first `depth` layers need."""
        self.depth = depth

    def extra_repr(self) -> str:
        return f"depth={self.depth}"


class Add(Join, name="add"):
    """The usual join: added to the tokens once, before the first layer."""

    def forward(self, position: Tensor) -> list[Placement]:
        return [Placement(stream=position), *[Placement()] * (self.depth - 1)]


class Shared(Join, name="shared"):
    """The same embedding added to the tokens before every layer.

    It lands on the residual stream, as in LaPE's released code (`share`); the paper's text has it inside the attention
    branch alone.
    """

    def forward(self, position: Tensor) -> list[Placement]:
        return [Placement(stream=position)] * self.depth


class Unshared(Join, name="unshared"):
    """An embedding of its own for every layer, added to the tokens before it (LaPE's released `unshare`)."""

    per_layer = True

    def forward(self, position: Tensor) -> list[Placement]:
        return [Placement(stream=own.unsqueeze(0)) for own in position]


class Constant(Join):
    """What another join placed, as constants (`gab.models.fold`)."""

    def __init__(self, placements: list[Placement]):
        super().__init__(0, len(placements), 0.0)
        for layer, placement in enumerate(placements):
            for where, value in placement._asdict().items():
                self.register_buffer(f"{where}{layer}", value)

    def forward(self, position: Tensor | None) -> list[Placement]:
        return [Placement(getattr(self, f"stream{i}"), getattr(self, f"attention{i}")) for i in range(self.depth)]
