"""The typed schema of the whole config, and how a config becomes plain objects.

Importing this registers the schema with Hydra: `train.yaml` and `eval.yaml` start from `train_schema` and
`eval_schema`, and every file of the groups model and evaluators from the schema of its network or evaluator. Those are
in no group, so that `--help` does not offer them.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from data.config import DataConfig
from gab.config import (
    AttentionDistanceConfig,
    AugmentConfig,
    BiasMapsConfig,
    CheckpointConfig,
    CompactConfig,
    DistillationConfig,
    ErfConfig,
    EvalConfig,
    EvalRunConfig,
    EvaluatorConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    PositionSimilarityConfig,
    RealConfig,
    RollOutConfig,
    RunConfig,
    SetConfig,
    SwinConfig,
    SwinV2Config,
    T2TConfig,
    TimmConfig,
    TrainConfig,
    ViTAEConfig,
    ViTConfig,
)
from gab.tracking.config import TrackingConfig

NETWORKS: dict[str, type[ModelConfig]] = {
    "vit": ViTConfig,
    "compact": CompactConfig,
    "swin": SwinConfig,
    "swinv2": SwinV2Config,
    "vitae": ViTAEConfig,
    "t2t": T2TConfig,
    "timm": TimmConfig,
}

EVALUATORS: dict[str, type[EvaluatorConfig]] = {
    "top1": EvaluatorConfig,
    "real": RealConfig,
    "v2": SetConfig,
    "a": SetConfig,
    "r": SetConfig,
    "sketch": SetConfig,
    "c": SetConfig,
    "erf": ErfConfig,
    "bias_maps": BiasMapsConfig,
    "position_similarity": PositionSimilarityConfig,
    "attention_distance": AttentionDistanceConfig,
    "rollout": RollOutConfig,
}


SPLITS = ("split", "holdout", "fraction", "split_seed")  # settings of which images are for what


@dataclass
class Config:
    """A training run."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: InitConfig = field(default_factory=InitConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluators: dict[str, EvaluatorConfig] = field(default_factory=dict)
    seed: int = 0  # of start values, order, crops, augmentation and drop-path
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def not_given(schema: Any) -> Any:
    """A section in which nothing is set, so that it can be told what a user sets."""
    return schema(**{one.name: not_given(one.type) if is_dataclass(one.type) else MISSING for one in fields(schema)})


@dataclass
class EvaluateConfig:
    """An evaluation of a checkpoint, or of a model by name."""

    checkpoint: str | None = None  # a file; null: `model` has its weights from timm
    model: ModelConfig | None = None  # null: the checkpoint's
    data: DataConfig | None = field(default_factory=lambda: not_given(DataConfig))  # else the checkpoint's
    evaluators: dict[str, EvaluatorConfig] = field(default_factory=dict)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: EvalRunConfig = field(default_factory=EvalRunConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Config)
    store.store(name="eval_schema", node=EvaluateConfig)
    for network, schema in NETWORKS.items():
        store.store(name=f"{network}_schema", node=schema)
    for evaluator, settings in EVALUATORS.items():
        store.store(name=f"{evaluator}_schema", node=settings)


def data_for(given: DictConfig, own: DataConfig | None) -> DictConfig | None:
    """The section `data` of an evaluation as a whole: what is `given`, over the settings of the checkpoint's own.

    Another data set (data=NAME) is as its file says. Named so, the own one keeps its splits all the same, so that no
    image of the training is among those of the validation.

    Args:
        own: the data set of the checkpoint, if there is one.

    Returns:
        None where nobody says on which images.
    """
    if OmegaConf.is_missing(given, "name"):
        return None if own is None else OmegaConf.merge(OmegaConf.structured(own), given)  # type: ignore[return-value]
    images = OmegaConf.merge(OmegaConf.structured(DataConfig), given)
    if own is not None and (images.name, images.reader) == (own.name, own.reader):
        images.update({key: getattr(own, key) for key in SPLITS if OmegaConf.is_missing(given, key)})
    return images  # type: ignore[return-value]


def plain(config: DictConfig) -> dict[str, Any]:
    """All values, interpolations resolved, in plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def typed(config: DictConfig) -> Any:
    """The dataclasses of the schema, filled."""
    return OmegaConf.to_object(config)


def model_from(container: dict[str, Any]) -> ModelConfig:
    """The model section of a stored config, typed again."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NETWORKS[container["network"]]), container))  # type: ignore[return-value]


def init_from(container: dict[str, Any]) -> InitConfig:
    """The section init of a stored config, typed again."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(InitConfig), container))  # type: ignore[return-value]


def data_from(container: dict[str, Any]) -> DataConfig:
    """The data section of a stored config, typed again."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), container))  # type: ignore[return-value]


register()
