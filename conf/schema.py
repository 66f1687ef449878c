"""The typed schema of the whole config, and how a config becomes plain objects.

Importing this registers the schema with Hydra: `train.yaml` and `eval.yaml` start from `train_schema` and
`eval_schema`, and every file of the groups model and evaluators from the schema of its network or evaluator.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from data.config import DataConfig
from gab.config import (
    AugmentConfig,
    CheckpointConfig,
    CompactConfig,
    DistillationConfig,
    EvalConfig,
    EvalRunConfig,
    EvaluatorConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RealConfig,
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
}


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
    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class EvaluateConfig:
    """An evaluation of a checkpoint, or of a model by name."""

    checkpoint: str | None = None
    model: ModelConfig | None = None  # null: the checkpoint's
    data: DataConfig | None = None  # null: the checkpoint's
    evaluators: dict[str, EvaluatorConfig] = field(default_factory=dict)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: EvalRunConfig = field(default_factory=EvalRunConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Config)
    store.store(name="eval_schema", node=EvaluateConfig)
    for network, schema in NETWORKS.items():
        store.store(group="model", name=f"{network}_schema", node=schema)
    for evaluator, settings in EVALUATORS.items():
        store.store(group="evaluators", name=f"{evaluator}_schema", node=settings)


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


def data_from(container: dict[str, Any]) -> DataConfig:
    """The data section of a stored config, typed again."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), container))  # type: ignore[return-value]


register()
