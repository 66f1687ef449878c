"""Hand on a trained network: `python scripts/export.py runs/NAME` writes a folder for timm, with a model card."""

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences  # noqa: E402
from conf.schema import data_from, model_from  # noqa: E402
from data.config import DataConfig  # noqa: E402
from gab.config import TimmConfig  # noqa: E402
from gab.errors import UserError  # noqa: E402
from gab.export import Weights, card, save, save_onnx  # noqa: E402
from gab.models import build, variant  # noqa: E402
from gab.models.plain import to_timm  # noqa: E402
from gab.models.registry import create  # noqa: E402
from gab.tracking import record  # noqa: E402
from gab.training import checkpoint  # noqa: E402
from gab.training.sizes import resize, trained_at  # noqa: E402
from gab.training.state import load_weights  # noqa: E402

KINDS = {"raw": "model", "ema": "ema"}  # where a checkpoint keeps them


def main(arguments: list[str] | None = None) -> None:
    """Write the files and say where; what a user can get wrong ends in a sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="runs/NAME", help="folder of a run, or one of its checkpoints (.pt)")
    parser.add_argument("--weights", choices=list(KINDS), default="raw", help="ema: averaged ones; default: raw")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/NAME/export")
    parser.add_argument("--fold", action="store_true", help="biases as tables: timm alone loads it, without gab")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, folded")
    given = parser.parse_args(arguments)
    with sentences():
        export(given.run, given.weights, given.out, given.fold, given.onnx)


def export(run: Path, weights: str, out: Path | None, folded: bool, onnx: bool) -> None:
    """What the command line asks for."""
    path = run if run.suffix == ".pt" else run / "checkpoints" / "last.pt"
    stored = checkpoint.load(path)
    data = data_from(stored["config"]["data"])
    model = network(stored, weights, data, path)
    if folded:
        model = to_timm(model)
    folder = out or path.parent.parent / "export"
    save(model, folder, transform(data), stored["classes"])
    (folder / "README.md").write_text(describe(model, stored, weights, path))
    print(f"{folder}: {_loading(model)}")
    if onnx:
        difference = save_onnx(model, folder / "model.onnx", data.image_size)
        compared = "not compared: ONNX Runtime is missing" if difference is None else f"logits within {difference:.0e}"
        print(f"{folder / 'model.onnx'}: images (batch, 3, {data.image_size}, {data.image_size}) to logits; {compared}")


def network(stored: dict[str, Any], weights: str, data: DataConfig, path: Path) -> nn.Module:
    """The network of the checkpoint, as timm makes it by name.

    Raises:
        UserError: there are no such weights.
    """
    if stored[KINDS[weights]] is None:
        raise UserError(f"{path} holds no averaged weights: leave --weights out")
    config, classes, size = model_from(stored["config"]["model"]), len(stored["classes"]), trained_at(stored)
    if isinstance(config, TimmConfig):
        config.pretrained = False  # its weights are about to be replaced
        model = build(config, image_size=size, num_classes=classes, seed=0)
    else:
        model = create(config, img_size=size, num_classes=classes)
    load_weights(model, stored[KINDS[weights]])
    resize(model, size, data.image_size)
    return model.eval()


def transform(data: DataConfig) -> dict[str, Any]:
    """The evaluation transform by timm's names."""
    return {
        "input_size": (3, data.image_size, data.image_size),
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "crop_pct": data.eval_crop,
        "interpolation": data.eval_interpolation,
    }


def describe(model: nn.Module, stored: dict[str, Any], weights: str, path: Path) -> str:
    """The model card."""
    folder = path.resolve().parent.parent
    rows = record.read(folder / "record.jsonl") if (folder / "record.jsonl").is_file() else []
    evaluations = [row for row in rows if row["kind"] == "eval" and row["step"] == stored["step"]]
    return card(
        folder.name,
        variant(model_from(stored["config"]["model"])),
        stored["config"],
        Weights(path.name, stored["step"], weights, evaluations[-1] if evaluations else None),
        classes=len(stored["classes"]),
        parameters=sum(p.numel() for p in model.parameters()),
        plain=not _is_ours(model),
    )


def _is_ours(model: nn.Module) -> bool:
    return type(model).__module__.startswith("gab.")


def _loading(model: nn.Module) -> str:
    call = 'timm.create_model("local-dir:FOLDER", pretrained=True)'
    return f"`import gab`, then {call}" if _is_ours(model) else call


if __name__ == "__main__":
    main()
