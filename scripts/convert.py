"""Weights as their authors publish them, as a file for timm: `python scripts/convert.py official.pth --model NAME`.

The options of the network are inferred, and `--option join=shared` gives those that cannot be. Nothing in the file is
run: one that holds more than tensors, numbers and settings is refused.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from omegaconf import OmegaConf
from safetensors.torch import save

from conf.errors import sentences
from gab.errors import UserError
from gab.models.convert import Conversion, call, convert
from gab.models.weights import read

SHOWN = 3  # of the names that changed


def main(arguments: list[str] | None = None) -> None:
    """Write the weights, and print what was done and the call that loads them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, help="file of torch.save")
    parser.add_argument("--model", required=True, metavar="NAME", help="as for timm.create_model, such as vitae_tiny")
    parser.add_argument("--out", type=Path, default=Path("weights.safetensors"), metavar="FILE.safetensors")
    parser.add_argument(
        "--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as for timm.create_model"
    )
    given = parser.parse_args(arguments)
    with sentences():
        found = convert(read(given.official), given.model, **parse(given.option))
        write(given.out, found, given.model, given.official)
        print(account(found))
        print(f"import gab, timm; timm.{call(given.model, {**found.options, 'checkpoint_path': str(given.out)})}")


def parse(options: list[str]) -> dict[str, Any]:
    """KEY=VALUE, values as in YAML."""
    for option in options:
        if "=" not in option:
            raise UserError(f"--option takes KEY=VALUE, not {option!r}.")
    return OmegaConf.to_container(OmegaConf.from_dotlist(options))  # type: ignore[return-value]


def write(path: Path, found: Conversion, model_name: str, source: Path) -> None:
    """The weights as safetensors, with model, options and source in the file's metadata."""
    if path.suffix != ".safetensors":
        raise UserError(f"--out {path} must end in .safetensors, by which timm knows such a file.")
    metadata = {"format": "pt", "model": model_name, "options": json.dumps(found.options), "source": source.name}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous().clone() for name, value in found.weights.items()}
        path.write_bytes(save(tensors, metadata))  # save_file would hide it from all other users
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): set --out to another place.") from error


def account(found: Conversion) -> str:
    """What was done, in two lines at most."""
    parameters = sum(value.numel() for value in found.weights.values())
    names = [f"{old} -> {new}" for old, new in found.renamed.items()]
    parts = [f"{len(found.weights)} tensors with {parameters:,} values"]
    for what, which in (("renamed", names), ("dropped", found.dropped)):
        if which:
            parts.append(f"{len(which)} {what} ({', '.join(which[:SHOWN])}{', ...' if len(which) > SHOWN else ''})")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
