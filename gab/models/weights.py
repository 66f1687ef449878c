"""Where weights come from: a file that others have written, or a name of timm."""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from gab.errors import UserError
from gab.models.build import check_name, not_downloaded


def read(path: Path) -> Any:
    """What `torch.save` or safetensors wrote, without running any of it.

    The settings that DeiT's kind of script saves beside the weights are an `argparse.Namespace`, which only holds
    values.

    Raises:
        UserError: the file is missing, damaged, or wants to run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): another copy is needed.") from error
    except Exception as error:  # a hostile file may provoke any; torch's text advises to load it all the same
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than tensors, numbers and settings, and would run code "
            "when loaded. Save its state_dict alone where you trust it."
        ) from error


def published(name: str) -> nn.Module:
    """The network of timm's registry as it was published, with its weights.

    Raises:
        UserError: timm does not know the name, has no weights for it, or cannot fetch them.
    """
    check_name(name)
    try:
        return timm.create_model(name, pretrained=True)
    except OSError as error:
        raise not_downloaded(name, error) from error
    except Exception as error:  # timm, its hub and the hub's own libraries each have errors of their own
        raise UserError(
            f"timm has no weights of {name} to give ({error}): choose a name that has some, or give a file of weights."
        ) from error
