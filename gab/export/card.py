"""The model card of an exported network: README.md as the Hugging Face hub reads it."""

import json
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from gab.training.run_folder import essential

HUB_DATASETS = {"imagenet": "imagenet-1k", "cifar10": "cifar10"}  # by the names of conf/data

CARD = """---
{metadata}---

# {name}

{variant}: {parameters:,} parameters, {classes:,} classes, trained on {data} at {image_size} px by gab-vit.

{measured}

## Use

```python
{imports}

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:USER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

{needs} `config.json` holds the shape, the transform and the names of the classes.

## Training

Every setting that may change results:

```yaml
{settings}
```
"""


@dataclass
class Weights:
    """Which weights of a run: the checkpoint's file name and step, their kind, and that step's row of the record."""

    file: str
    step: int
    kind: str  # raw | ema
    row: dict[str, Any] | None  # None: not evaluated

    @property
    def top1(self) -> float | None:
        """Percent of the validation images."""
        return self.row.get("top1_ema" if self.kind == "ema" else "top1") if self.row else None


def card(
    name: str, variant: str, config: dict[str, Any], weights: Weights, *, classes: int, parameters: int, plain: bool
) -> str:
    """Markdown with the hub's metadata on top.

    Args:
        name: of the run.
        variant: of the network (`gab.models.variant`).
        config: of the run, in plain dicts.
        weights: which ones, and what was measured with them.
        classes, parameters: their numbers.
        plain: whether timm loads the network without this package.
    """
    data = config["data"]
    return CARD.format(
        metadata=OmegaConf.to_yaml(OmegaConf.create(_metadata(name, data["name"], weights))),
        name=name,
        variant=variant,
        parameters=parameters,
        classes=classes,
        data=data["name"],
        image_size=data["image_size"],
        measured=_measured(data, weights),
        imports="import timm" if plain else "import gab  # of gab-vit\nimport timm",
        needs="timm alone loads it: biases are folded into its own parts."
        if plain
        else "timm finds the network once `gab` is imported.",
        settings="\n".join(f"{key}: {json.dumps(value)}" for key, value in essential(config).items()),
    )


def _metadata(name: str, data: str, weights: Weights) -> dict[str, Any]:
    """What the hub shows and searches."""
    metadata: dict[str, Any] = {
        "tags": ["image-classification", "timm", "gab-vit"],
        "pipeline_tag": "image-classification",
        "library_name": "timm",
    }
    if data in HUB_DATASETS:
        metadata["datasets"] = [HUB_DATASETS[data]]
    if weights.top1 is not None:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": HUB_DATASETS.get(data, data), "split": "validation"},
            "metrics": [{"type": "accuracy", "name": "top-1", "value": round(weights.top1, 3)}],
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _measured(data: dict[str, Any], weights: Weights) -> str:
    """A sentence with top-1, and where it is recorded."""
    kind = "averaged" if weights.kind == "ema" else "raw"
    if weights.row is None or weights.top1 is None:
        return f"These are the {kind} weights of step {weights.step:,}, which were not evaluated in training."
    row, chosen = weights.row, " This step was chosen on these images." if weights.file == "best.pt" else ""
    return (
        f"Top-1 is {weights.top1:.3f} % on {row['images']:,} validation images of {data['name']}: {kind} weights, one "
        f"crop, {row['precision']}, one run. It is in the run's `record.jsonl`, in the evaluation of epoch "
        f"{row['epoch']:g}, step {row['step']:,}.{chosen}"
    )
