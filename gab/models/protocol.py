"""What the networks tell optimisers."""

from torch import nn

UNDECAYED = {"amplitude", "sigma", "pos_embed", "cls_token", "relative_position_bias_table"}


def undecayed(model: nn.Module) -> set[str]:
    """Full names of the parameters without weight decay: Gaussians, tokens, embeddings and tables.

    The Gaussian's are exempt by the paper; vectors are so by their shape in timm's grouping, but not everywhere else.
    """
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] in UNDECAYED}
