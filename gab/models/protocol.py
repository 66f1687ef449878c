"""What the networks tell optimisers."""

from collections.abc import Collection

from torch import nn

UNDECAYED = frozenset(
    {
        "amplitude",
        "class_bias",
        "cls_token",
        "dist_token",
        "logit_scale",
        "pos_embed",
        "relative_position_bias_table",
        "sigma",
    }
)
GAUSSIAN = frozenset({"amplitude", "class_bias", "sigma"})


def undecayed(model: nn.Module, released: Collection[str] | None = None) -> set[str]:
    """Full names of the parameters without weight decay: Gaussians, tokens, embeddings and tables.

    The Gaussian's are exempt by the paper; vectors are so by their shape in timm's grouping, but not everywhere else.

    Args:
        model: a network of this package.
        released: full names that the released code of its paper exempts instead, to compare runs with it; an embedding
            per layer is decayed there. The Gaussian's, which it lacks, stay exempt.
    """
    if released is None:
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] in UNDECAYED}
    return {
        name
        for name, parameter in model.named_parameters()
        if (name in released and len(parameter) == 1) or name.rpartition(".")[2] in GAUSSIAN
    }
