"""A network as an ONNX file, compared with the network by ONNX Runtime."""

import copy
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.fold import fold

OPSET = 20
TOLERANCE = 1e-4  # of the logits, relative to the largest


def save_onnx(model: nn.Module, path: Path, image_size: int, in_chans: int = 3) -> float | None:
    """Writes the folded network (`gab.models.fold`): `images` (batch, channels, side, side) to `logits`.

    Args:
        model: left as it is.
        path: of the file, which holds the weights too.
        image_size: side in pixels; the number of images is free.
        in_chans: number of image channels.

    Returns:
        The largest difference to the logits of `model` on noise, None where ONNX Runtime is not installed.

    Raises:
        UserError: the extra `export` is not installed, or the file gives other logits.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError("ONNX files need onnx and onnxscript: install the extra `export`, or leave --onnx out.")
    model = fold(copy.deepcopy(model).cpu())
    images = torch.randn(3, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            model,
            (images[:2],),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # it takes `x + 1e-8` for `x`, which moves a Performer's outputs; runtimes optimise anyway
            external_data=False,
            verbose=False,
        )
        expected = model(images)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _compare(path, images, expected)


def _compare(path: Path, images: Tensor, expected: Tensor) -> float:
    """The largest difference between the file's logits and those expected."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {"images": images.numpy()})
    difference = (torch.from_numpy(logits) - expected).abs().max().item()
    if not difference <= TOLERANCE * expected.abs().max().item():
        raise UserError(f"{path} gives logits that differ by {difference:.1e} from the network's: do not use it.")
    return difference
