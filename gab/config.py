"""What may be set about models, optimisation and the run (schema of the groups in `conf/`).

Sections are split by one question: may a setting change results? `run` and `checkpoint` may not (beyond rounding).
Most of the others may, and so enter the fingerprint that names a run; `gab.training.run_folder` lists what does not.
"""

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"  # how OmegaConf marks what has no default; the models alone do without OmegaConf


@dataclass
class ModelConfig:
    """Common to all networks; `gab.models.build.variant` makes names of it."""

    network: str = MISSING  # the kind of network: vit | compact | swin | swinv2 | vitae | t2t | timm; its file chooses
    base: str = MISSING  # the network's name without switches, with which the names of its runs begin


@dataclass
class GaussianConfig:
    """The Gaussian attention bias (docs/methods/gab.md): start values and granularity."""

    per_head: bool = False  # a pair (A, sigma) for every head, instead of one for every layer
    amplitude: float = 2.0  # where A starts
    sigma: Any = 5.0  # where sigma starts, in patches: NUMBER | auto (5 L / 14 on a grid of L x L)
    class_bias: str = "zero"  # added for a class token's key: zero | row_mean (mean of the row) | learned (per layer)
    frozen: bool = False  # A and sigma stay as they start


@dataclass
class ViTConfig(ModelConfig):
    """A vision transformer: shape, and one choice per socket."""

    network: str = "vit"
    drop_path_rate: float = 0.1  # drop-path rate of the last layer; it rises evenly from 0 at the first
    patch_size: int = 16  # side in pixels
    embed_dim: int = 768  # width of the tokens, a multiple of num_heads; LIFE needs a multiple of 3
    depth: int = 12  # number of layers
    num_heads: int = 12  # attention heads of every layer
    mlp_ratio: float = 4.0  # width of the MLP over that of the tokens
    qkv_bias: bool = True  # biases in the linear map that makes q, k and v
    layer_scale: float | None = None  # start value; null: no LayerScale
    class_token: bool = True  # a token without a place, for the head to read
    distillation_token: bool = False  # a second such token, with a head of its own
    pool: str = "token"  # what the head reads: token (the class token) | avg (the mean of the patches)
    position: str = "learnable"  # absolute position embedding: none | learnable | sincos_1d | sincos_2d
    join: str = "add"  # how the position joins the tokens: add (once) | shared (before every layer) | unshared (each
    # layer's own, before it) | lape (normalised by every layer, for its attention alone) | lape_sharing (LaPE's first
    # version)
    join_norm: str = "layer_norm"  # in place of LaPE's LayerNorm, as in its Table 8: layer_norm | identity | gain |
    # channel_gain | affine | norm | norm_gain | norm_channel_gain
    rel_pos: str = "none"  # relative bias of the scores: none | mlp (of log offsets) | bias (timm's table) | table
    # (between patches alone) | table_norm (that with a LayerNorm)
    rel_pos_start: str = "default"  # start of the relative bias: default | gaussian (as the Gaussian of model.gaussian)
    gab: bool = False  # adds the Gaussian to the scores
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    life: bool = False  # q, k and v from three scales of the grid, with biases whatever qkv_bias says
    qkv_norm: bool = False  # of LIFE: a LayerNorm for q, k and v
    aux_key: str = "released"  # of LIFE, a class token's key: released (of the first scale) | per_scale (of all)
    init: str = "trunc_normal"  # where weights start: trunc_normal (DeiT) | pytorch (as timm's vit_relpos)
    drop_rate: float = 0.0  # dropout before the head
    proj_drop_rate: float = 0.0  # dropout after the attention's output and in the MLP
    attn_drop_rate: float = 0.0  # dropout of the attention's weights
    grad_checkpointing: bool = False  # computes layers again in the backward pass: less memory, more time


@dataclass
class SwinConfig(ModelConfig):
    """Swin transformer: biases in every window, an absolute position in every stage."""

    network: str = "swin"
    patch_size: int = 4  # side in pixels
    embed_dim: int = 96  # width of the tokens in the first stage; every later one has twice that of the one before
    depths: list[int] = field(default_factory=lambda: [2, 2, 18, 2])  # number of layers of every stage
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])  # attention heads of every stage's layers
    window_size: int = 7  # side of a window, in tokens
    mlp_ratio: float = 4.0
    rel_pos: str = "bias"  # relative bias of the scores: bias (Swin's tables) | none
    position: str = "none"  # absolute position embedding: none | learnable (one per stage)
    join: str = "add"  # as in a ViT, inside each stage: add | shared | unshared | lape | lape_sharing
    join_norm: str = "layer_norm"
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
    mlp_ratio: float = 2.0  # width of the MLP, and of the convolution branch, over that of the tokens
    class_token: bool = False
    pool: str = "avg"
    position: str = "none"
    prm_widths: list[int] = field(default_factory=lambda: [64, 64])  # of the two reduction cells: channels per dilation
    token_widths: list[int] = field(default_factory=lambda: [64, 64])  # width of the tokens that they give
    groups: int = 64  # groups of the convolutions in the blocks


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
    token_width: int = 64  # channels in the token module


@dataclass
class CompactConfig(ViTConfig):
    """ViT-Lite, and with other choices CVT and CCT, for small images."""

    network: str = "compact"
    stem: str = "patch"  # what makes tokens: patch | conv (a 3 x 3 convolution and a maximum: CCT, with patch_size=2)
    patch_size: int = 4
    embed_dim: int = 256
    depth: int = 7
    num_heads: int = 4
    mlp_ratio: float = 2.0
    qkv_bias: bool = False
    pool: str = "token"  # what the head reads: token | seq (mean of the patches by a learnt score) | avg (plain mean)
    attn_drop_rate: float = 0.1


@dataclass
class TimmConfig(ModelConfig):
    """Any network of timm's registry, ours included."""

    network: str = "timm"
    base: str = "${.name}"
    name: str = MISSING  # a network of `timm.list_models()`
    drop_path_rate: float | None = None  # drop-path rate; null: the network's own
    pretrained: bool | None = None  # timm's weights; null: no in training, yes in evaluation
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments for timm.create_model: +model.kwargs.KEY=VALUE


@dataclass
class OptimConfig:
    """Optimiser and schedule. Learning rates are absolute unless `lr_batch` names the batch size that they are for."""

    name: str = "adamw"  # optimiser: adamw | sgd (with momentum) | lamb
    lr: float = 5e-4  # peak learning rate
    lr_batch: int | None = None  # batch size that lr is for: the peak is lr * batch_size / lr_batch; null: lr for any
    weight_decay: float = 0.05  # of the parameters that `decay` says
    decay: str = "ours"  # which parameters decay: ours (no vector, token, position or table) | released (as the paper's
    # code groups) | all (but A and sigma)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of adamw and lamb
    eps: float = 1e-8  # of adamw and lamb
    momentum: float = 0.9  # of sgd
    layer_decay: float | None = None  # factor of the rate from each layer to the one before it; null: one rate for all
    warmup_epochs: float = 3.0  # epochs in which the rate rises from warmup_lr to its peak
    warmup_lr: float = 1e-6  # rate of the first step
    min_lr: float = 1e-6  # rate at the cosine's end
    lr_per: str = "step"  # when the rate changes: step | epoch (the rate of an epoch's first step holds for all of it)
    cosine_from: str = "warmup"  # where the cosine begins: warmup (after it) | start (at step 0, under the warm-up)
    cooldown_epochs: float = 10.0  # epochs at min_lr, the last of train.epochs
    clip_grad: float | None = None  # greatest norm of the gradient; null: any
    gaussian_lr_scale: float = 1.0  # learning rate of A and sigma over that of the others; 1 as published


@dataclass
class RandAugmentConfig:
    """RandAugment in timm's dialect (Cubuk et al., NeurIPS 2020): layers=2 is its `rand-m9-mstd0.5-inc1`."""

    layers: int = 0  # operations on each image, one after another (n); 0: off
    magnitude: float = 9.0  # strength of the operations, of 10 (m)
    magnitude_std: float = 0.5  # normal noise on the magnitude (mstd); above 100: uniform from 0 to the magnitude
    magnitude_max: float | None = None  # limit of the noisy magnitude (mmax); null: 10
    prob: float = 0.5  # probability of each operation (p)
    increasing: bool = True  # every operation is stronger at a larger magnitude (inc)
    weighted: bool = False  # choose operations by timm's weights, none twice (tweights)


@dataclass
class AugmentConfig:
    """What happens to training batches on the device; crop and flip belong to the data set (`data.crop`)."""

    randaugment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
    three_augment: bool = False  # every image grey, solarised or blurred (DeiT-III); in place of RandAugment
    color_jitter: float = 0.0  # brightness, contrast and saturation by a factor in 1 +- this, in random order
    rotation: float = 0.0  # degrees, uniform in +- this; the nearest pixels, black outside
    interpolation: str = "random"  # where RandAugment moves pixels: bilinear | bicubic | random (either, per operation)
    erase_prob: float = 0.25  # probability of random erasing, by noise in every pixel
    mixup: float = 0.2  # alpha of its Beta distribution; 0: off
    cutmix: float = 1.0  # alpha of its Beta distribution; 0: off
    mix_prob: float = 1.0  # probability of mixing at all
    switch_prob: float = 0.5  # probability of cutmix rather than mixup, where both are on
    mix_mode: str = "batch"  # strengths in a group: batch (one) | pair (one for two partners) | element (one for each)
    mix_epochs: int | None = None  # mixing ends after so many epochs; null: never
    mixing_group: int = 8  # consecutive samples of the global batch that mix with one another
    label_smoothing: float = 0.1  # share of the label that goes to all classes alike


@dataclass
class InitConfig:
    """Where the weights of a run begin; without a source, every tensor from (seed, its name)."""

    source: str | None = None  # a name of timm, a checkpoint, or a file of published weights; null: from the seed
    weights: str = "raw"  # which of a checkpoint that has both: raw | ema
    fresh: list[str] = field(default_factory=list)  # parts to start anew: head, rel_pos, position, gaussian


@dataclass
class DistillationConfig:
    """A second loss against a teacher's predictions (Touvron et al., ICML 2021); needs `model.distillation_token`."""

    teacher: str | None = None  # a name of timm's registry, with its weights; null: no distillation
    weights: str | None = None  # a file with the teacher's weights; null: timm's
    kind: str = "hard"  # what is learned of the teacher: hard (its class) | soft (its distribution)
    alpha: float = 0.5  # share of the second loss
    temperature: float = 3.0  # of the distributions of soft


@dataclass
class TrainConfig:
    """Length, batch and precision of a run."""

    epochs: int = 410  # length of the run; 410 are 400 of the cosine and 10 of cooldown
    batch_size: int = 2304  # images of a step, of all processes together
    loss: str = "ce"  # cross-entropy: ce (softmax) | bce (sigmoids; a mixed image is of both classes: DeiT-III)
    sizes: dict[int, int] = field(default_factory=dict)  # pixels by the epoch that they begin with, in place of
    # data.image_size: '+train.sizes={0:128,100:192}'
    test: str = "last"  # weights that the data set's test images are shown to at the end: last | best (on validation)
    precision: str = "auto"  # of forward and backward pass: bf16 | fp32 | auto (bf16 on CUDA, fp32 on CPU)
    ema_decay: float | None = 0.99996  # decay per step of the averaged weights; null: none are kept
    sync_batchnorm: bool = False  # BatchNorm, in networks that have it, over all processes instead of over each
    eval_every: int = 1  # epochs between evaluations
    max_steps: int | None = None  # steps of an epoch; null: all
    eval_images: int | None = None  # images of an evaluation in training, spread evenly over the split; null: all
    skip_non_finite: int = 0  # steps that may be left out as their gradient is not finite; one more stops the run
    overfit: bool = False  # the first batch again and again (debug=overfit takes the augmentation away too)


@dataclass
class EvaluatorConfig:
    """What looks at the network; `top1` needs no more than this, and in training goes by `train.eval_every`."""


@dataclass
class ScheduledConfig(EvaluatorConfig):
    """What looks at the network after some epochs of training."""

    every_epochs: int | None = None  # epochs between its looks in training; null: after the last epoch


@dataclass
class SetConfig(ScheduledConfig):
    """A set of images for networks of ImageNet's 1000 classes, shown to them by the transform of `data`."""

    root: str = MISSING  # the folder with the images
    crop: float | None = None  # in place of data.eval_crop; null: that
    partial: bool = False  # score what is there of a set that is not complete


@dataclass
class RealConfig(SetConfig):
    """ImageNet's validation images with the ReaL labels."""

    labels: str | None = None  # real.json or real.json.gz; null: the copy that comes with timm


@dataclass
class ErfConfig(ScheduledConfig):
    """Effective receptive fields over images of the data set, as the GAB paper measures them (`gab.evaluators.erf`)."""

    images: int = 64  # how many, spread evenly over the split
    target: Any = 1  # fields of which patches: K (K x K, 1: the middle one) | [ROW,COLUMN] | [[ROW,COLUMN],...]
    layer: Any = None  # whose output is read: NAME (of a module) | NUMBER (of a block) | null (the last features)
    readout: str = "mean"  # which number of the features: mean (over channels, the paper's) | random (fixed signs) |
    # pre_norm (mean before the last norm)
    batch_size: int = 16  # images of one backward pass; changes rounding alone


@dataclass
class BiasMapsConfig(ScheduledConfig):
    """Attention biases as maps around a query, and Gaussians fitted to them (`gab.evaluators.bias_maps`)."""

    query: Any = 1  # patch whose maps are drawn, in Swin of a window: [ROW,COLUMN] | 1 (the one in the middle)


@dataclass
class PositionSimilarityConfig(ScheduledConfig):
    """How alike the position embeddings of two patches are, in every layer (`gab.evaluators.position_similarity`)."""

    target: Any = 1  # patches whose maps are drawn: K | [ROW,COLUMN] | [[ROW,COLUMN],...]; as evaluators.erf.target


@dataclass
class AttentionDistanceConfig(ScheduledConfig):
    """How far every head looks, over images of the data set (`gab.evaluators.attention_distance`)."""

    images: int = 64  # how many, spread evenly over the split
    batch_size: int = 16  # images at a time; changes rounding alone


@dataclass
class RollOutConfig(ScheduledConfig):
    """Attention roll-out and its dense form over a few images of the data set (`gab.evaluators.rollout`)."""

    images: int = 4  # how many, spread evenly over the split
    classes: list[int] | None = None  # numbers of classes, of the dense form; null: the true and the predicted one
    row: str = "auto"  # which is read: auto (as the head reads) | class | distillation | both | mean (of the patches)
    fusion: str = "mean"  # of the heads' attention: mean | max | min
    discard_ratio: float = 0.0  # share of the least weights that is taken as zero
    start_layer: int = 1  # the first one of the product, from 1
    mode: str = "soft"  # of the dense form, patches by class: soft (probability) | hard (whether it is the largest)
    renormalise: bool = False  # in the dense form, what went to prefix tokens is not lost


@dataclass
class RunConfig:
    """Where and how a run is computed, and how often it tells of itself."""

    dir: str = "runs"  # folder of all runs
    name: str | None = None  # the run's folder in it; null: variant, data, seed and a hash of what may change results
    device: str = "auto"  # what computes: cuda | cpu | auto (CUDA where there is one)
    processes: str = "auto"  # on this machine: NUMBER | auto (one per visible GPU, 1 on CPU)
    micro_batch: int | None = None  # images at once per process, whose gradients are added up; null: its whole share
    workers: int | None = None  # loader threads per process; null: this process's share of the cores
    compile: str = "auto"  # the network by torch.compile: true | false | auto (on CUDA)
    deterministic: bool = False  # the same bits in every run on a GPU too; slower
    attention: str = "auto"  # computed by: auto (gab/attention/choice.py) | reference | sdpa | fused (our kernels)
    log_every: int = 50  # steps between rows of the record
    eval_batch: int = 256  # images of an evaluation at once, per process
    dry: bool = False  # says sizes, steps, learning rate, disk and hours, and trains nothing
    images_per_second: float = 1000.0  # assumed by run.dry
    profile: bool = False  # PyTorch's profiler around the run; debug=profile makes that a short one


@dataclass
class CheckpointConfig:
    """When the state is saved, and how much of the past is kept. A signal saves it too."""

    every_epochs: int = 1  # epochs between checkpoints
    every_minutes: float | None = 15.0  # minutes since the last one; null: not by time
    every_steps: int | None = None  # optimiser steps between checkpoints; null: not by steps
    keep: int = 1  # how many older ones beside last.pt and best.pt


@dataclass
class EvalRunConfig:
    """Where and how an evaluation is computed; nothing here changes results beyond rounding."""

    dir: str = "runs"  # folder of evaluations without a checkpoint
    device: str = "auto"
    processes: str = "auto"
    workers: int | None = None
    attention: str = "auto"
    eval_batch: int = 256


@dataclass
class EvalConfig:
    """What an evaluation computes, and where its files go."""

    split: str = "val"  # which images: val | train | test
    weights: str = "both"  # of a checkpoint: raw | ema (averaged) | both
    precision: str = "fp32"  # of the arithmetic: fp32 | bf16
    out: str | None = None  # folder; null: beside the checkpoint, or runs/eval/MODEL-DATA-SPLIT-SIZE
