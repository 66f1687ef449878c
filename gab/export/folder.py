"""A folder that timm loads by `local-dir:FOLDER`, and by `hf-hub:USER/NAME` once it is on the Hugging Face hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

ARCHITECTURE = ("architecture", "input_size", "fixed_input_size", "pool_size", "first_conv", "num_classes")


def save(model: nn.Module, folder: Path, transform: dict[str, Any], classes: Sequence[str]) -> None:
    """Writes model.safetensors and config.json.

    Args:
        model: as timm.create_model made it. Its `pretrained_cfg` is cut to what belongs to the architecture: the rest
            (licence, tag, addresses) is about weights that these are not.
        folder: made if missing; what these files held is replaced.
        transform: of an evaluation image, by timm's names: input_size, mean, std, crop_pct, interpolation.
        classes: names of the logits, in order.
    """
    own: Any = model.pretrained_cfg
    model.pretrained_cfg = {key: own[key] for key in ARCHITECTURE if key in own}  # type: ignore[assignment]
    config = {"label_names": list(classes), "pretrained_cfg": {"classifier": _classifiers(model)}}
    save_for_hf(model, str(folder), config, safe_serialization=True, data_config={"crop_mode": "center", **transform})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors hides it from all other users


def _classifiers(model: Any) -> list[str] | str:
    """Names of the layers that make the logits: timm renews them for another number of classes."""
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    names = [name for name, module in model.named_modules() if any(module is head for head in heads)]
    return names[0] if len(names) == 1 else names
