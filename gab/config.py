"""What may be set about models, optimisation and the run (schema of the groups in `conf/`).

Sections are split by one question: may a setting change results? `run` and `checkpoint` may not (beyond rounding);
everything else may, and so enters the fingerprint that names a run.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """Common to all networks. `base` is the network's name without switches; see `gab.models.build.variant`."""

    network: str = MISSING  # vit | swin | timm
    base: str = MISSING
    drop_path_rate: float = 0.1


@dataclass
class GaussianConfig:
    """The Gaussian attention bias (methods sheet of GAB): start values and granularity."""

    per_head: bool = False
    amplitude: float = 2.0
    sigma: Any = 5.0  # patches, or `auto` = 5 L / 14 on a grid of L x L


@dataclass
class ViTConfig(ModelConfig):
    """A vision transformer: shape, and one choice per socket."""

    network: str = "vit"
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float | None = None  # start value; null: no LayerScale
    class_token: bool = True
    pool: str = "token"  # token | avg
    position: str = "learnable"  # none | learnable | sincos_1d | sincos_2d
    rel_pos: str = "none"  # none | mlp | bias
    gab: bool = False
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    init: str = "trunc_normal"  # trunc_normal (DeiT) | pytorch (the layers' own start, as timm's vit_relpos)
    drop_rate: float = 0.0  # before the head
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    grad_checkpointing: bool = False


@dataclass
class SwinConfig(ModelConfig):
    """Swin transformer with its relative position tables, optionally a Gaussian in every window."""

    network: str = "swin"
    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 18, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 7
    mlp_ratio: float = 4.0
    gab: bool = False
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    drop_rate: float = 0.0
    grad_checkpointing: bool = False
    drop_path_rate: float = 0.3


@dataclass
class TimmConfig(ModelConfig):
    """Any network of timm's registry, ours included."""

    network: str = "timm"
    base: str = "${.name}"
    name: str = MISSING
    pretrained: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
