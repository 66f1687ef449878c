"""The receptive-field studies, on a small network and digits."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gab.errors import UserError
from gab.evaluators.erf import ReceptiveField, effective_receptive_field
from gab.evaluators.erf_figures import all_targets, compare_fields
from gab.evaluators.erf_table import MIXED, markdown, mixes
from gab.tracking.figure_files import save
from scripts.erf import COLUMNS, labels, parse, study

FEW = ["--images", "8", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_run(
        tmp_path_factory.mktemp("trained"), "train.epochs=1", "train.max_steps=8", "optim.warmup_epochs=0",
        "optim.cooldown_epochs=0", "train.ema_decay=null", "model.gab=true",
    )  # fmt: skip
    return str(folder / "checkpoints" / "last.pt")


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "erf.csv").open(newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def test_before_and_after_training(trained: str, tmp_path: Path, capsys) -> None:
    study(parse(["training", trained, *FEW, "--out", str(tmp_path)]))
    before, after = table(tmp_path).values()
    assert before["own_patch"] != after["own_patch"]
    assert before["measured"] == after["measured"] == "channel mean, not normalised"
    assert (before["row"], before["images"]) == ("1", "8")
    assert MIXED not in (tmp_path / "erf.md").read_text()
    assert (tmp_path / "figures" / "erf.png").stat().st_size > 10_000
    assert "run, before training" in capsys.readouterr().out


def test_before_a_fine_tuning_are_the_weights_of_its_source(tiny_run, trained: str, tmp_path: Path) -> None:
    source = tmp_path / "source.pt"
    shutil.copy(trained, source)
    short = ["train.epochs=1", "train.max_steps=2", "optim.warmup_epochs=0", "optim.cooldown_epochs=0"]
    run = tiny_run(tmp_path, *short, "train.ema_decay=null", "model.gab=true", "seed=1", f"init.source={source}")
    command = ["training", str(run / "checkpoints" / "last.pt"), *FEW]
    study(parse([*command, "--out", str(tmp_path / "tuned")]))
    study(parse(["training", trained, *FEW, "--out", str(tmp_path / "first")]))
    tuned, first = table(tmp_path / "tuned"), table(tmp_path / "first")
    assert tuned["run, before training"]["area_50"] == first["run, after training"]["area_50"]
    assert tuned["run, before training"]["own_patch"] == first["run, after training"]["own_patch"]
    stored = torch.load(source, weights_only=True)
    stored["model"]["head.weight"] += 1
    torch.save(stored, source)
    with pytest.raises(UserError, match=r"source\.pt holds other weights than .*last\.pt began with"):
        study(parse([*command, "--out", str(tmp_path / "other")]))
    source.unlink()
    with pytest.raises(UserError, match=r"last\.pt cannot be shown as it began, with weights of .*source\.pt"):
        study(parse([*command, "--out", str(tmp_path / "gone")]))


def test_what_networks_are_called() -> None:
    assert labels(["runs/A/checkpoints/last.pt", "resnet18", "/B/checkpoints/last.pt"]) == {
        "runs/A/checkpoints/last.pt": "A", "resnet18": "resnet18", "/B/checkpoints/last.pt": "B"
    }  # fmt: skip
    same = ["/x/A/checkpoints/last.pt", "/y/A/checkpoints/last.pt", "/y/A/checkpoints/best.pt", "/checkpoints/last.pt"]
    assert list(labels(same).values()) == ["x/A/last", "y/A/last", "A/best", "last"]


def test_two_checkpoints_of_a_run(trained: str, tmp_path: Path) -> None:
    best = trained.replace("last.pt", "best.pt")
    study(parse(["table", trained, best, *FEW, "--out", str(tmp_path)]))
    assert list(table(tmp_path)) == ["run/last", "run/best"]


def test_settings_count_without_data(trained: str, tmp_path: Path) -> None:
    study(parse(["table", trained, *FEW, "--out", str(tmp_path)]))
    with pytest.raises(UserError, match=r"of another network or of other images: choose another --out"):
        study(parse(["table", trained, *FEW, "--out", str(tmp_path), f"data.root={tmp_path}"]))
    with pytest.raises(UserError, match=r"data\.image_size=48 changes nothing: .* leave it out"):
        study(parse(["table", trained, *FEW, "--out", str(tmp_path), "data.image_size=48"]))
    with pytest.raises(UserError, match=r"data\.rot is not a setting"):
        study(parse(["table", trained, *FEW, "--out", str(tmp_path), f"+data.rot={tmp_path}"]))


def test_positions_reset(trained: str, tmp_path: Path) -> None:
    """This network has relative biases alone; the trained arm is the one of the other study."""
    study(parse(["positions", trained, *FEW, "--out", str(tmp_path)]))
    found = table(tmp_path)
    assert list(found) == ["run", "run, rel_pos reset"]
    assert len({row["own_patch"] for row in found.values()}) == 2
    with pytest.raises(UserError, match=r"run has no position that was learned"):
        study(parse(["positions", trained, *FEW, "--part", "position", "--out", str(tmp_path / "other")]))


def test_goes_on_where_it_stopped(trained: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    study(parse(["table", trained, *FEW, "--out", str(whole)]))
    study(parse(["table", trained, *FEW, "--out", str(cut), "--until", "9"]))
    assert table(cut)["run"]["images"] == "4"
    study(parse(["table", trained, *FEW, "--out", str(cut)]))
    assert table(cut) == table(whole)
    states = [torch.load(out / "state" / "run.pt", weights_only=True) for out in (whole, cut)]
    assert torch.equal(states[0]["sum"], states[1]["sum"])
    with pytest.raises(UserError, match=r"of another network or of other images: choose another --out"):
        study(parse(["table", trained, "--images", "9", "--out", str(cut)]))
    with pytest.raises(UserError, match=r"of another network or of other images: choose another --out"):
        study(parse(["table", trained, *FEW, "--out", str(cut), "--data", "digits", f"data.root={tmp_path}"]))
    (cut / "state" / "run.pt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"run\.pt cannot be read: remove it"):
        study(parse(["table", trained, *FEW, "--out", str(cut)]))


def test_a_name_needs_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say on which images resnet18 is looked at: add --data NAME"):
        study(parse(["table", "resnet18", "--out", str(tmp_path)]))
    with pytest.raises(UserError, match="--images and --batch-size take 1 or more"):
        study(parse(["table", "resnet18", "--images", "0"]))
    with pytest.raises(UserError, match="no network is given"):
        study(parse(["table", "data.root=x", "--out", str(tmp_path)]))


def test_mixed_readouts_are_said() -> None:
    rows = [{**dict.fromkeys(COLUMNS, 1.0), "measured": name} for name in ("after", "before")]
    assert mixes(rows)
    assert MIXED in markdown(rows, COLUMNS)
    assert not mixes(rows[:1])
    assert MIXED not in markdown(rows[:1], COLUMNS)


def field(targets: list[tuple[int, int]], measured: str = "channel mean", count: int = 9) -> ReceptiveField:
    """Gaussians around the targets, the same for all images but for their strength."""
    made = ReceptiveField(measured, (4, 6), targets, (32, 48))
    y, x = np.mgrid[:32, :48]
    maps = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 50.0) for cy, cx in made.centres()]
    strength = torch.linspace(0.5, 1.5, count)
    made.add(strength[None, :, None, None] * torch.from_numpy(np.stack(maps))[:, None])
    return made


def test_figures(tmp_path: Path) -> None:
    """What is on the axes, and that nothing is drawn without the words that it needs."""
    one, other = field([(1, 2)]), field([(2, 5)], measured="random signs", count=5)
    one.notes.append("LayerScale is tiny.")
    figure = compare_fields({"a": one, "b": other})
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [panel.get_xlabel() for panel in panels[:3]] == ["x (pixels)"] * 2 + ["distance from the target (pixels)"]
    assert panels[0].get_title(loc="left").startswith("a\nrow 1, column 2; channel mean; 9 images, relative error ")
    assert "R² 1.000, σ 5.0 x 5.0 px" in panels[0].get_title(loc="left")
    assert [text.get_text() for text in panels[2].get_legend().get_texts()] == ["other rows", "this row"]
    assert "too few for a fit" in panels[3].get_title(loc="left")
    words = figure.get_supxlabel()
    assert "a: LayerScale is tiny." in words
    assert "different functionals" in words
    image = panels[0].images[0].get_array()
    assert (image.shape, image.max()) == ((32, 48), 1.0)
    patch = panels[0].patches[0]
    assert (patch.get_xy(), patch.get_width(), patch.get_height()) == ((15.5, 7.5), 8.0, 8.0)
    [single] = [axes for axes in all_targets(field([(1, 2)], count=1)).axes if axes.images]
    assert single.figure.get_suptitle() == "receptive fields of 1 patches\nchannel mean; one image"
    files = save(figure, tmp_path / "new" / "erf")
    assert [file.name for file in files] == ["erf.png", "erf.pdf"]
    several = all_targets(field([(0, 0), (0, 3), (3, 3)]))
    assert [axes.get_title() for axes in several.axes if axes.images and axes.get_visible()] == [
        "row 0, column 0", "row 0, column 3", "row 3, column 3"
    ]  # fmt: skip


def test_the_images_themselves() -> None:
    """Every pixel is a patch that sees itself alone."""
    assert effective_receptive_field(nn.Identity(), torch.rand(8, 3, 4, 4)).own_shares() == [1.0]
