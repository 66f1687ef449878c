"""A W&B workspace for comparing runs: what it shows, under the names that the mirror gives it, and saving it."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gab.errors import UserError
from gab.tracking.session import reason
from gab.tracking.wandb_server import client

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Comparison of variants"
VARIANT = "variant"  # the key of W&B's config that tells the arms apart
MOST_RUNS = 200  # that a panel takes in; W&B's own limit of 10 would leave seeds out without a word
ANSWER = 10  # seconds for an answer of W&B
RECEPTIVE_FIELDS = ("erf", "erf_targets")  # figures, for raw and for averaged weights
LEARNED = ("bias_maps", "position_similarity", "attention_distance", "rollout")  # likewise
COLUMNS = (
    "config:variant.value",
    "config:seed.value",
    "config:data.value.name",
    "run:state",
    "summary:epoch",
    "summary:eval/top1.last",
    "summary:eval/top1.max",
    "summary:eval/top1_ema.last",
    "summary:eval/loss",
    "summary:evaluate/erf_area_50",
    "summary:train/images_per_second",
    "summary:train/data_wait",
    "summary:train/mfu",
    "summary:gpu_hours",
)


def workspace(
    project: str, entity: str = "", *, name: str = NAME, where: Mapping[str, Sequence[Any]] | None = None
) -> "Workspace":
    """The workspace, made without a network; lines are means over the runs of a variant, shades their deviation.

    Args:
        project, entity: of W&B.
        name: by which W&B lists it.
        where: values that a setting of the config may have in the runs that are shown, by its name (`data.name`).

    Raises:
        UserError: the package wandb-workspaces is missing.
    """
    ws = _package()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(),
        # W&B draws standard deviations for sampled points only.
        settings=ws.WorkspaceSettings(
            x_axis="epoch", max_runs=MOST_RUNS, point_visualization_method="downsampling", group_by_prefix="first"
        ),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(*(ws.Config(key).isin(list(values)) for key, values in where.items())) if where else "",
            order=[ws.Ordering(ws.Config(f"{key}.value")) for key in (VARIANT, "seed")],
            pinned_columns=["run:displayName", *COLUMNS],
        ),
    )


def spec(made: "Workspace") -> str:
    """What W&B is sent of a workspace, as JSON."""
    return json.dumps(json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)), indent=2)


def save(project: str, entity: str | None = None, **settings: Any) -> str:
    """Save it as a new view of the project; returns its address.

    Args:
        entity: user or team; None for WANDB_ENTITY, else the default of the account.
        settings: of `workspace`.

    Raises:
        UserError: the package is missing, nobody is logged in, there is no such project, or W&B does not answer.
    """
    wandb = client()  # before the package, which brings it in without our defaults
    _package()
    try:
        api = wandb.Api(timeout=ANSWER)
        entity = entity or os.environ.get("WANDB_ENTITY") or api.default_entity
        known = _exists(api, project, entity)
    except Exception as error:
        raise UserError(
            f"W&B did not answer ({reason(error)}): check your key (`wandb login`) and your network"
        ) from error
    if not known:
        raise UserError(
            f"W&B has no project {entity}/{project} that you may see: give another project or entity, or send a run "
            "there first (tracking.wandb=online, or scripts/wandb_resync.py)"
        )
    made = workspace(project, str(entity), **settings)
    try:
        return made.save().url
    except Exception as error:
        raise UserError(f"W&B did not take the view ({reason(error)}): may you write to {entity}/{project}?") from error


def _exists(api: Any, project: str, entity: str | None) -> bool:
    try:
        return bool(api.project(project, entity=entity).id)
    except ValueError as error:
        if "not found" in str(error):
            return False
        raise


def _package() -> Any:
    """The module wandb_workspaces.workspaces."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            "the package wandb-workspaces is not installed: install it with `make setup` or "
            "`pip install 'wandb-workspaces>=0.4.13,<0.5'`"
        ) from error
    return ws


def _sections() -> "list[Section]":
    import wandb_workspaces.workspaces as ws

    panels: dict[str, list[Any]] = {
        "Does it help?": [
            _curves("top-1 of the validation images", "%", "eval/top1"),
            _curves("top-1, averaged weights", "%", "eval/top1_ema"),
            _bars("top-1 at the end", "%", "end/top1"),
            _curves("loss of the validation images", "nats", "eval/loss"),
            _curves("loss in training", "nats", "train/loss"),
        ],
        "What the Gaussian learned": [
            _layers("width σ, every layer and head", "patches", "sigma"),
            _layers("amplitude A, every layer and head", "1", "amplitude"),
        ],
        "Receptive fields": [
            _figures("receptive fields", RECEPTIVE_FIELDS),
            _curves("area that holds half of the mass", "% of the pixels", "evaluate/erf_area_50"),
            _curves("share of the target patch itself", "%", "evaluate/erf_own_patch"),
            _curves(
                "σ of the fitted Gaussian, across and down", "pixels", "evaluate/erf_sigma_x", "evaluate/erf_sigma_y"
            ),
        ],
        "What biases and positions learned": [
            _figures("maps of biases and positions, attention distance, roll-out", LEARNED),
            _curves("mean attention distance", "pixels", "evaluate/attention_distance_pixels"),
        ],
        "Speed": [
            _curves("throughput", "images/s", "train/images_per_second"),
            _curves("time spent waiting for data", "share", "train/data_wait"),
            _curves("model FLOPS utilisation", "share", "train/mfu"),
        ],
    }
    return [ws.Section(name, panels=content, is_open=True) for name, content in panels.items()]


def _by_variant() -> dict[str, Any]:
    """Settings of a panel: a line or bar per variant, the mean of its runs, with their standard deviation."""
    import wandb_workspaces.reports.v2 as wr

    return {
        "groupby": wr.Config(VARIANT),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": MOST_RUNS,
    }


def _curves(title: str, unit: str, *keys: str, **more: Any) -> Any:
    """Metrics over epochs."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x="epoch",
        y=list(keys),
        title_x="epoch",
        title_y=unit,
        point_visualization_method="sampling",
        **_by_variant(),
        **more,
    )


def _layers(title: str, unit: str, field: str) -> Any:
    """One line per layer, or per head where there are several; how many a network has is not known here."""
    return _curves(title, unit, metric_regex=rf"^{field}/layer_\d+(/head_\d+)?$")


def _figures(title: str, names: Sequence[str]) -> Any:
    """Figures of evaluators, a column per run."""
    import wandb_workspaces.reports.v2 as wr

    keys = [f"figures/{name}{weights}" for name in names for weights in ("", "_ema")]
    return wr.MediaBrowser(title=title, media_keys=keys, mode="grid", grid_x_axis="run")


def _bars(title: str, unit: str, key: str) -> Any:
    """The last value of a metric."""
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(title=title, title_x=unit, metrics=[key], orientation="h", **_by_variant())
