"""What may be set about the W&B mirror (schema of `conf/tracking`)."""

from dataclasses import dataclass, field


@dataclass
class TrackingConfig:
    """A value given here beats W&B's environment variable (named beside it), which beats the default."""

    wandb: str | None = None  # online | offline | disabled; null: WANDB_MODE, else offline (no account or key needed)
    project: str | None = None  # null: WANDB_PROJECT, else gab
    entity: str | None = None  # null: WANDB_ENTITY, else the default of the account
    group: str | None = None  # null: WANDB_RUN_GROUP, else none
    name: str | None = None  # null: WANDB_NAME, else the run's own name
    tags: list[str] = field(default_factory=list)  # empty: WANDB_TAGS
    notes: str | None = None  # null: WANDB_NOTES
