"""Hand on a trained network: `python scripts/export.py runs/NAME` writes a folder for timm, with a model card."""

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from conf.networks import TRANSFORM, restore
from conf.schema import data_from, model_from
from data.config import DataConfig
from gab.errors import UserError
from gab.export import Weights, card, save, save_onnx
from gab.models import variant
from gab.models.plain import to_timm
from gab.tracking import record
from gab.training import checkpoint
from gab.training.state import WEIGHTS


def main(arguments: list[str] | None = None) -> None:
    """Write the files and say where; what a user can get wrong ends in a sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="runs/NAME", help="folder of a run, or one of its checkpoints (.pt)")
    parser.add_argument("--weights", choices=list(WEIGHTS), default="raw", help="ema: averaged ones; default: raw")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/NAME/export (--fold: export-folded)")
    parser.add_argument("--fold", action="store_true", help="biases as tables: timm alone loads it, without gab")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, folded")
    given = parser.parse_args(arguments)
    with sentences():
        export(given.run, given.weights, given.out, given.fold, given.onnx)


def export(run: Path, weights: str, out: Path | None, folded: bool, onnx: bool) -> None:
    """What the command line asks for.

    Raises:
        UserError: there is no such checkpoint, or it has no such weights.
    """
    path = run if run.suffix == ".pt" else run / "checkpoints" / "last.pt"
    stored = checkpoint.load(path)
    if stored[WEIGHTS[weights]] is None:
        raise UserError(f"{path} holds no averaged weights: leave --weights out")
    data = data_from(stored["config"]["data"])
    model = restore(stored, weights, data.image_size).eval()
    if folded:
        model = to_timm(model)
    folder = out or path.parent.parent / ("export-folded" if folded else "export")
    save(model, folder, transform(data), stored["classes"])
    (folder / "README.md").write_text(describe(model, stored, weights, path))
    print(f"{folder}: {_loading(model, folder)}")
    if onnx:
        difference = save_onnx(model, folder / "model.onnx", data.image_size)
        compared = (
            "not compared: ONNX Runtime is missing" if difference is None else f"within {difference:.0e} of PyTorch's"
        )
        print(f"{folder / 'model.onnx'}: images (batch, 3, {data.image_size}, {data.image_size}) to logits; {compared}")


def transform(data: DataConfig) -> dict[str, Any]:
    """The evaluation transform by timm's names."""
    settings = {theirs: getattr(data, ours) for ours, theirs in TRANSFORM.items()}
    return {"input_size": (3, data.image_size, data.image_size), **settings}


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


def _loading(model: nn.Module, folder: Path) -> str:
    """A line of Python."""
    packages = "gab, timm" if _is_ours(model) else "timm"
    return f'import {packages}; timm.create_model("local-dir:{folder}", pretrained=True)'


if __name__ == "__main__":
    main()
