"""What may be set about the W&B mirror (schema of `conf/tracking`)."""

from dataclasses import dataclass, field


@dataclass
class TrackingConfig:
    """A value given here beats W&B's environment variable (named beside it), which beats the default."""

    wandb: str | None = None  # the mirror: online | offline | disabled; null: WANDB_MODE, else offline
    project: str | None = None  # null: WANDB_PROJECT, else gab
    entity: str | None = None  # null: WANDB_ENTITY, else the default of the account
    group: str | None = None  # null: WANDB_RUN_GROUP, else none
    name: str | None = None  # null: WANDB_NAME, else the run's own name
    tags: list[str] = field(default_factory=list)  # []: WANDB_TAGS, else none
    notes: str | None = None  # null: WANDB_NOTES, else none
