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

    network: str = MISSING  # vit | compact | swin | swinv2 | vitae | t2t | timm
    base: str = MISSING


@dataclass
class GaussianConfig:
    """The Gaussian attention bias (methods sheet of GAB): start values and granularity."""

    per_head: bool = False
    amplitude: float = 2.0
    sigma: Any = 5.0  # patches, or `auto` = 5 L / 14 on a grid of L x L
    class_bias: str = "zero"  # zero | row_mean | learned: what a class token's key gets in a network that has one
    frozen: bool = False  # A and sigma stay as they start


@dataclass
class ViTConfig(ModelConfig):
    """A vision transformer: shape, and one choice per socket."""

    network: str = "vit"
    drop_path_rate: float = 0.1
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float | None = None  # start value; null: no LayerScale
    class_token: bool = True
    distillation_token: bool = False  # a second token with a head of its own
    pool: str = "token"  # token | avg
    position: str = "learnable"  # none | learnable | sincos_1d | sincos_2d
    join: str = "add"  # add | shared | unshared | lape | lape_sharing
    rel_pos: str = "none"  # none | mlp | bias (timm's table) | table (between patches alone) | table_norm
    rel_pos_start: str = "default"  # default | gaussian: the relative bias starts as the Gaussian of `gaussian`
    gab: bool = False
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    life: bool = False  # q, k and v from three scales of the grid, with biases whatever qkv_bias says
    qkv_norm: bool = False  # of LIFE: a LayerNorm for q, k and v
    aux_key: str = "released"  # of LIFE: released | per_scale
    init: str = "trunc_normal"  # trunc_normal (DeiT) | pytorch (the layers' own start, as timm's vit_relpos)
    drop_rate: float = 0.0  # before the head
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    grad_checkpointing: bool = False


@dataclass
class SwinConfig(ModelConfig):
    """Swin transformer: biases in every window, an absolute position in every stage."""

    network: str = "swin"
    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 18, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 7
    mlp_ratio: float = 4.0
    rel_pos: str = "bias"  # bias: its tables | none
    position: str = "none"  # none | learnable: one embedding per stage
    join: str = "add"  # add | shared | unshared | lape | lape_sharing, inside each stage
    gab: bool = False
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    drop_rate: float = 0.0
    grad_checkpointing: bool = False
    drop_path_rate: float = 0.3


@dataclass
class SwinV2Config(ModelConfig):
    """Swin transformer V2: cosine attention, and a continuous position bias in every window."""

    network: str = "swinv2"
    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 8
    mlp_ratio: float = 4.0
    life: bool = False  # q, k and v from three scales of the window
    gab: bool = False
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    drop_rate: float = 0.0
    grad_checkpointing: bool = False
    drop_path_rate: float = 0.2


@dataclass
class ViTAEConfig(ViTConfig):
    """ViTAE: two reduction cells and a pyramid in front of a ViT whose blocks have a convolution branch.

    Positions, joins, biases and LIFE are those of its blocks; LIFE needs a width that 3 divides (`vitae_s`).
    """

    network: str = "vitae"
    embed_dim: int = 256
    depth: int = 7
    num_heads: int = 4
    mlp_ratio: float = 2.0  # also the widening of the convolution branch
    class_token: bool = False
    pool: str = "avg"
    position: str = "none"
    prm_widths: list[int] = field(default_factory=lambda: [64, 64])  # per dilation, of the two reduction cells
    token_widths: list[int] = field(default_factory=lambda: [64, 64])  # of the two reduction cells
    groups: int = 64  # of the convolutions in the blocks


@dataclass
class T2TConfig(ViTConfig):
    """T2T-ViT: tokens of tokens in front of a ViT. Positions, joins, biases and LIFE are those of its blocks."""

    network: str = "t2t"
    embed_dim: int = 256
    depth: int = 7
    num_heads: int = 4
    mlp_ratio: float = 2.0
    qkv_bias: bool = False
    position: str = "sincos_1d"
    token_width: int = 64  # in the token module


@dataclass
class CompactConfig(ViTConfig):
    """ViT-Lite, and with other choices CVT and CCT, for small images (methods sheet of the baselines)."""

    network: str = "compact"
    stem: str = "patch"  # patch | conv: 3 x 3 convolution and maximum, with patch_size 2 (CCT)
    patch_size: int = 4
    embed_dim: int = 256
    depth: int = 7
    num_heads: int = 4
    mlp_ratio: float = 2.0
    qkv_bias: bool = False
    pool: str = "token"  # token | seq: patches, weighted by a learnt score | avg
    attn_drop_rate: float = 0.1


@dataclass
class TimmConfig(ModelConfig):
    """Any network of timm's registry, ours included."""

    network: str = "timm"
    base: str = "${.name}"
    name: str = MISSING
    drop_path_rate: float | None = None  # null: the network's own
    pretrained: bool | None = None  # null: no in training, yes in evaluation
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model


@dataclass
class OptimConfig:
    """Optimiser and schedule. Learning rates are absolute unless `lr_batch` names the batch size that they are for."""

    name: str = "adamw"  # adamw | sgd | lamb
    lr: float = 5e-4
    lr_batch: int | None = None  # lr is for this batch size: the effective one is lr * batch_size / lr_batch
    weight_decay: float = 0.05
    decay: str = "ours"  # which parameters: ours (no vector, token, position or table) | released (as the paper's code
    # groups) | all (but A and sigma)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    momentum: float = 0.9  # of sgd
    layer_decay: float | None = None  # learning rates fall by this factor from the head to the stem; null: all the same
    warmup_epochs: float = 3.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    lr_per: str = "step"  # step | epoch: the rate of an epoch's first step holds for all of it
    cosine_from: str = "warmup"  # warmup: half a cosine after it | start: the warm-up replaces the cosine's beginning
    cooldown_epochs: float = 10.0  # at min_lr, the last of train.epochs
    clip_grad: float | None = None  # norm
    gaussian_lr_scale: float = 1.0  # of A and sigma; 1 as published


@dataclass
class RandAugmentConfig:
    """RandAugment in timm's dialect (Cubuk et al., NeurIPS 2020): layers=2 is its `rand-m9-mstd0.5-inc1`."""

    layers: int = 0  # operations on each image, one after another (n); 0: off
    magnitude: float = 9.0  # of 10 (m)
    magnitude_std: float = 0.5  # normal noise on the magnitude (mstd); above 100: uniform from 0 to the magnitude
    magnitude_max: float | None = None  # mmax; null: 10
    prob: float = 0.5  # of each operation (p)
    increasing: bool = True  # every operation is stronger at a larger magnitude (inc)
    weighted: bool = False  # choose operations by timm's weights, none twice (tweights)


@dataclass
class AugmentConfig:
    """What happens to training batches on the device; crop and flip belong to the data set (`data.crop`)."""

    randaugment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
    three_augment: bool = False  # grey, solarised or blurred, one of them on every image (DeiT-III); or RandAugment
    color_jitter: float = 0.0  # brightness, contrast and saturation by a factor in 1 +- this, in random order
    rotation: float = 0.0  # degrees, uniform in +- this; the nearest pixels, black outside
    interpolation: str = "random"  # where RandAugment moves pixels: bilinear | bicubic | random (either, per operation)
    erase_prob: float = 0.25  # random erasing, pixel mode
    mixup: float = 0.2  # alpha; 0: off
    cutmix: float = 1.0  # alpha; 0: off
    mix_prob: float = 1.0
    switch_prob: float = 0.5  # of cutmix where both are on
    mix_mode: str = "batch"  # of a group: batch (one strength) | pair (one for two partners) | element (one for each)
    mix_epochs: int | None = None  # mixing ends after so many epochs; null: never
    mixing_group: int = 8  # consecutive samples of the global batch that mix with one another
    label_smoothing: float = 0.1


@dataclass
class InitConfig:
    """Where the weights of a run begin; without a source, every tensor from (seed, its name)."""

    source: str | None = None  # a name of timm's registry | a checkpoint of this project | a file of published weights
    weights: str = "raw"  # raw | ema: of a checkpoint that has both
    fresh: list[str] = field(
        default_factory=list
    )  # parts that start anew all the same: head | rel_pos | position | gaussian


@dataclass
class DistillationConfig:
    """A second loss against a teacher's predictions (Touvron et al., ICML 2021); needs `model.distillation_token`."""

    teacher: str | None = None  # a name of timm's registry, with its weights; null: no distillation
    weights: str | None = None  # a file with the teacher's weights; null: timm's
    kind: str = "hard"  # hard: the teacher's class | soft: its distribution
    alpha: float = 0.5  # share of the second loss
    temperature: float = 3.0  # of soft


@dataclass
class TrainConfig:
    """Length, batch and precision of a run."""

    epochs: int = 410  # 400 and the cooldown
    batch_size: int = 2304  # global
    loss: str = "ce"  # ce | bce: every class for itself, a mixed image belongs to both of its classes (DeiT-III)
    sizes: dict[int, int] = field(
        default_factory=dict
    )  # {epoch: pixels}: from that epoch on, in place of data.image_size; +train.sizes={0:128,100:192}
    test: str = "last"  # weights that the data set's test images are shown to at the end: last | best (on validation)
    precision: str = "auto"  # bf16 | fp32 | auto: bf16 on CUDA, fp32 on CPU
    ema_decay: float | None = 0.99996
    sync_batchnorm: bool = False  # BatchNorm, in networks that have it, over all processes instead of over each
    eval_every: int = 1  # epochs
    max_steps: int | None = None  # of an epoch; null: all
    eval_images: int | None = None  # the first ones, of an evaluation in training; null: all
    skip_non_finite: int = 0  # steps whose gradient is not finite that are left out; the next one stops the run
    overfit: bool = False  # the first batch again and again (debug=overfit takes the augmentation away too)


@dataclass
class EvaluatorConfig:
    """What looks at the network; `top1` needs no more than this, and in training goes by `train.eval_every`."""


@dataclass
class SetConfig(EvaluatorConfig):
    """A set of images for networks of ImageNet's 1000 classes, shown to them by the transform of `data`."""

    root: str = MISSING
    crop: float | None = None  # in place of data.eval_crop; null: that
    partial: bool = False  # score what is there of a set that is not complete
    every_epochs: int | None = None  # in training; null: after the last epoch


@dataclass
class RealConfig(SetConfig):
    """ImageNet's validation images with the ReaL labels."""

    labels: str | None = None  # real.json or real.json.gz; null: the copy that comes with timm


@dataclass
class RunConfig:
    """Where and how a run is computed; nothing here may change results beyond rounding."""

    dir: str = "runs"
    name: str | None = None  # null: variant, data, seed and a hash of what may change results
    device: str = "auto"  # cuda | cpu | auto
    processes: str = "auto"  # a number, or auto: one per visible GPU, 1 on CPU
    micro_batch: int | None = None  # per process; null: the whole share of a process
    workers: int | None = None  # loader threads per process; null: this process's share of the cores
    compile: str = "auto"  # true | false | auto: on CUDA
    deterministic: bool = False  # the same bits in every run on a GPU too; slower
    log_every: int = 50  # steps
    eval_batch: int = 256  # per process
    dry: bool = False
    images_per_second: float = 1000.0  # assumed by run.dry
    profile: bool = False


@dataclass
class CheckpointConfig:
    """When the state is saved, and how much of the past is kept. A signal saves it too."""

    every_epochs: int = 1
    every_minutes: float | None = 15.0  # since the last one; null: not by time
    every_steps: int | None = None  # optimiser steps; null: not by steps
    keep: int = 1  # older ones beside last.pt and best.pt


@dataclass
class EvalRunConfig:
    """Where and how an evaluation is computed; nothing here changes results beyond rounding."""

    dir: str = "runs"  # of evaluations without a checkpoint
    device: str = "auto"
    processes: str = "auto"
    workers: int | None = None
    eval_batch: int = 256  # per process


@dataclass
class EvalConfig:
    """What an evaluation computes, and where its files go."""

    split: str = "val"  # val | train | test
    weights: str = "both"  # raw | ema | both
    precision: str = "fp32"  # fp32 | bf16
    out: str | None = None  # folder; null: beside the checkpoint, or runs/eval/<model>-<data>
