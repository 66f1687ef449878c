"""What README.md and docs/ say of names, settings, files, commands and sizes is true."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from conf.checks import check, fill_in
from conf.errors import known_keys
from conf.schema import typed
from gab.models import build

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CARDS = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "methods").glob("*.md"))}
ALL = "\n".join([README, (ROOT / "docs" / "clusters.md").read_text(), *CARDS.values()])
COMMANDS = [
    command for card in CARDS.values() for command in re.findall(r"^python train\.py ([^#\n]*)", card, re.MULTILINE)
]
SECTIONS = ("model", "data", "augment", "optim", "train", "run", "checkpoint", "evaluators", "tracking", "eval")
MODELS = re.findall(r"^\| `(\w+)`[^|]* \| .*? \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", README, re.MULTILINE)
SIZES = {"swinv2_t": (256, 1000), "vit_lite7": (32, 10), "cvt7": (32, 10), "cct7": (32, 10)}  # others: 224 px, 1000


def test_settings_exist() -> None:
    named = set(re.findall(rf"(?:^|[\s`])((?:{'|'.join(SECTIONS)})\.(?!py`|log`)[\w.]+)(?==|`)", ALL, re.MULTILINE))
    assert len(named) > 40
    assert named - set(known_keys()) == set()


def test_choices_of_groups_exist() -> None:
    named = re.findall(r"(?:^|[\s`])(model|data|augment|debug)=([\w,]+)", ALL, re.MULTILINE)
    chosen = {(group, name) for group, names in named for name in names.split(",") if name != "NAME"}
    assert len(chosen) > 8
    assert [choice for choice in chosen if not (ROOT / "conf" / choice[0] / f"{choice[1]}.yaml").is_file()] == []


def test_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    paths = re.findall(r"`?\b((?:tests|scripts|docs|conf|gab|data)/[\w/.]+\.(?:py|svg|sh|sbatch|def))\b", ALL)
    scripts = re.findall(r"^python ([\w/]+\.py)", ALL, re.MULTILINE)
    assert len(links) >= 4
    assert len(paths) >= 4
    assert [path for path in {*links, *paths, *scripts} if not (ROOT / path).is_file()] == []


def test_files_of_the_folders_exist() -> None:
    """In the table of the architecture, which has every package."""
    rows = dict(re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", README.partition("| folder |")[2], re.MULTILINE))
    assert {f"gab/{path.parent.name}/" for path in (ROOT / "gab").glob("*/__init__.py")} <= rows.keys()
    named = [f"{folder}{name}" for folder, text in rows.items() for name in re.findall(r"`([\w/]+(?:\.py|/))`", text)]
    assert len(named) > 50
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_links_of_the_cards() -> None:
    links = [link for card in CARDS.values() for link in re.findall(r"\]\((?!http)([^)]+)\)", card)]
    assert CARDS.keys() == {"gab", "lape", "life", "vitae"}
    assert [link for link in links if not (ROOT / "docs" / "methods" / link).is_file()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_cards(command: str) -> None:
    """Each composes, fits the schema, and its settings fit one another."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", command.split())
    fill_in(cfg, "cuda")
    check(typed(cfg), processes=8)


def test_library_example_runs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["model"].patch_embed.img_size == (224, 224)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[0])
def test_parameter_counts(row: tuple[str, ...]) -> None:
    assert len(MODELS) == 22
    image_size, num_classes = SIZES.get(row[0], (224, 1000))
    switches = ["model.gab=false", "model.gab=true", "model.gab=true model.gaussian.per_head=true"]
    for switch, count in zip(switches, row[1:], strict=True):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = typed(compose("train", [f"model={row[0]}", *switch.split()]))
        with torch.device("meta"):
            model = build(config.model, image_size=image_size, num_classes=num_classes, seed=0)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == count
