"""Evaluation sets by eval.py and at the end of training, on replicas whose answers are known."""

import csv
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

import eval as evaluation
import train
from data.errors import DataError
from data.evaluation_sets import SETS, EvaluationSet
from gab.distributed import launch
from gab.errors import Stopped, UserError
from gab.evaluators import Accuracy, Scores, logits, synsets
from gab.evaluators.corruptions import PARTS
from gab.training import checkpoint
from tests.colours import paint

Config = Callable[..., DictConfig]
Rows = Callable[..., list[dict]]

# By hand, percent: two of three, one of two (plainly none), one of two, three of four, one of three.
EXPECTED = {"v2": 200 / 3, "a": 50.0, "r": 50.0, "sketch": 75.0, "real": 100 / 3}
COUNTS = {"v2": 3, "a": 2, "r": 2, "sketch": 4, "real": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GAB_DATA with a few images of every set, and ImageNet with one of every class, half of them answered wrongly."""
    root = tmp_path_factory.mktemp("data")
    wnids = synsets()
    for number, wnid in enumerate(wnids):
        paint(root / "imagenet" / "train" / wnid / f"{wnid}_1.png", number)
        paint(root / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number - number % 2)
    v2 = root / "imagenetv2-matched-frequency-format-val"
    for label, best in ((2, 2), (10, 10), (100, 5)):
        paint(v2 / str(label) / "0a.jpeg", best)
    for name in ("a", "r"):
        known = logits(name)
        unknown = max(n for n in range(1000) if n not in known)  # no label of the set either, which has 200
        paint(root / f"imagenet-{name}" / wnids[known[0]] / "0.jpg", unknown, known[0])
        paint(root / f"imagenet-{name}" / wnids[known[7]] / "0.jpg", known[8], known[7])
    for number in range(4):
        paint(root / "sketch" / wnids[number * 9] / "sketch_0.JPEG", number * 9 if number else 1)
    for number, part in enumerate(PARTS):
        paint(root / "imagenet-c" / part / wnids[3] / "ILSVRC2012_val_00000001.JPEG", 3 if number % 5 < 4 else 4)
    labels: list[list[int]] = [[] for _ in range(50_000)]
    labels[0], labels[1], labels[3] = [5, 0], [5], [9, 8]  # answered by 0, 0 and 2
    (root / "real.json").write_text(json.dumps(labels))
    return root


@pytest.fixture(autouse=True)
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAB_DATA", str(root))
    monkeypatch.setattr(launch, "START", "fork")  # so that the processes know the network too
    monkeypatch.setattr(train.figures, "draw", lambda *_: [])


PARTIAL = [f"evaluators.{name}.partial=true" for name in ("real", "v2", "a", "r", "sketch")]
ALL = "evaluators=[top1,real,v2,a,r,sketch]"
IMAGES = ["data=imagenet", "data.loader=torch", "data.image_size=32", "run.device=cpu", "run.workers=1"]
NETWORK = ["model=timm", "model.name=colours"]


def real(root: Path) -> str:
    return f"evaluators.real.labels={root / 'real.json'}"


def table(path: Path) -> list[dict[str, str]]:
    with (path / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("processes", [1, 3])
def test_every_set(processes: int, config: Config, root: Path, tmp_path: Path, capsys) -> None:
    evaluation.run(
        config(
            *IMAGES, *NETWORK, "model.pretrained=false", ALL, *PARTIAL, real(root),
            f"run.dir={tmp_path}", f"run.processes={processes}", name="eval",
        )
    )  # fmt: skip
    folder = tmp_path / "eval" / "colours-imagenet-val-32"
    found = json.loads((folder / "scores.json").read_text())["scores"]["raw"]
    for name, share in EXPECTED.items():
        assert (found[f"{name}_top1"], found[f"{name}_images"]) == (pytest.approx(share), COUNTS[name]), name
    assert (found["top1"], found["images"]) == (50.0, 1000)
    [row] = table(tmp_path / "eval")
    assert (row["checkpoint"], row["weights"], row["epoch"], row["data"]) == ("colours", "raw", "", "imagenet")
    assert float(row["a_top1"]) == 50
    assert row["v2_images"] == "3"
    assert (folder / "v2" / "predictions.npz").is_file()
    assert (folder / "predictions.npz").is_file()
    if processes == 1:
        assert re.search(r"raw +v2 +3 images +top1 66\.667", capsys.readouterr().out)


def test_corruptions(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image per part; wrong at severity 5 alone, which is 20 % of every corruption."""
    monkeypatch.setitem(SETS, "c", replace(SETS["c"], images=1))
    opened = EvaluationSet.open
    monkeypatch.setattr(EvaluationSet, "open", lambda *a, **k: opened(*a, **(k | {"workers": 0})))  # 75 times
    where = [f"eval.out={tmp_path}", "model.pretrained=false", "evaluators=[c]", "evaluators.c.partial=true"]
    evaluation.run(config(*IMAGES, *NETWORK, *where, name="eval"))
    [row] = table(tmp_path)
    assert (float(row["c_error"]), row["c_images"]) == (20, "75")
    assert "top1" not in row
    assert len((tmp_path / "c" / "corruptions.csv").read_text().splitlines()) == 16


@pytest.fixture(scope="module")
def run(config: Config, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`run(folder, *overrides)`: two epochs of two steps on ImageNet's 1000 classes."""

    def start(folder: Path, *overrides: str) -> Path:
        train.run(
            config(
                *IMAGES, *NETWORK, "augment=none", "train.epochs=2", "train.batch_size=4", "train.max_steps=2",
                "train.ema_decay=0.9", "tracking.wandb=disabled", f"run.dir={folder}", "run.name=run",
                "train.eval_images=100", "optim.lr=1e-4", *overrides,
            )
        )  # fmt: skip
        return folder / "run"

    return start


SETS_OF_THE_RUN = [
    "evaluators=[top1,v2,a]", "evaluators.v2.every_epochs=1", "evaluators.v2.partial=true", "evaluators.a.partial=true"
]  # fmt: skip


def test_training_ends_with_them(run, config: Config, rows: Rows, tmp_path: Path) -> None:
    """V2 after every epoch, A after the last; eval.py finds the same for last.pt, in the same row."""
    folder = run(tmp_path, *SETS_OF_THE_RUN)
    kinds = ["start", "train", "eval", "evaluate", "train", "eval", "evaluate", "end"]
    assert [row["kind"] for row in rows(folder)] == kinds
    first, last = rows(folder, "evaluate")
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 2, 2, 4)
    assert "a_top1" not in first
    for row in (first, last):
        assert (row["v2_top1"], row["v2_top1_ema"], row["v2_images"]) == (pytest.approx(200 / 3), row["v2_top1"], 3)
    assert (last["a_top1"], last["a_images"]) == (50.0, 2)
    before = table(folder / "eval")
    assert [(row["weights"], row["epoch"], row["step"], row["images"]) for row in before] == [
        ("raw", "2", "4", "100"),
        ("ema", "2", "4", "100"),
    ]
    assert {float(row["a_top1"]) for row in before} == {50.0}
    again = [f"checkpoint={folder / 'checkpoints' / 'last.pt'}", "run.workers=1", "run.device=cpu"]
    evaluation.run(
        config(*again, "evaluators=[top1,a,sketch]", "evaluators.a.partial=true", "evaluators.sketch.partial=true",
               name="eval")
    )  # fmt: skip
    after = table(folder / "eval")
    assert len(after) == 2
    for old, new in zip(before, after, strict=True):
        assert new["images"] == "1000"
        assert {key: new[key] for key in ("a_top1", "v2_top1", "a_images")} == {
            key: old[key] for key in ("a_top1", "v2_top1", "a_images")
        }
        assert float(new["sketch_top1"]) == 75


def test_a_signal_while_they_look(run, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found of the epoch is found again: no row is there twice."""
    whole = run(tmp_path / "whole", *SETS_OF_THE_RUN)
    asked = []

    def interrupt(self, model, images, conditions):
        if not asked and self.name == "a":
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return look(self, model, images, conditions)

    look = Accuracy.__call__
    monkeypatch.setattr(Accuracy, "__call__", interrupt)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", *SETS_OF_THE_RUN)
    assert asked
    cut = run(tmp_path / "cut", *SETS_OF_THE_RUN)
    assert [(row["kind"], row["step"]) for row in rows(cut)] == [(row["kind"], row["step"]) for row in rows(whole)]
    assert rows(cut, "evaluate")[1]["a_top1"] == 50
    assert len(table(cut / "eval")) == 2


def test_evaluators_do_not_change_a_run(run, tmp_path: Path) -> None:
    """Neither its name nor its config: what is begun without them may end with them."""
    run(tmp_path, "evaluators=[]", "train.eval_images=20")
    run(tmp_path, *SETS_OF_THE_RUN, "train.eval_images=20")  # is finished; another config would be refused


REFUSED = {
    "evaluators=[v2]": (DataError, r"imagenetv2.*lacks classes 0, 1, 3.* of ImageNet-V2.*evaluators\.v2\.partial=true"),
    "evaluators=[a] evaluators.a.root=gone": (DataError, r"no folder gone with images of ImageNet-A"),
    "evaluators=[real]": (DataError, r"holds 1,000 images where ImageNet's validation set has 50,000"),
    "evaluators=[c] evaluators.c.root=gone": (DataError, r"no folder gone/gaussian_noise/1 with images of ImageNet-C"),
    "evaluators=[real] evaluators.real.partial=true evaluators.real.labels=gone.json": (
        UserError, r"evaluators\.real\.labels=gone\.json cannot be read",
    ),
    "evaluators=[v2] evaluators.v2.partial=true data=digits": (
        UserError, r"evaluators=\[v2\] are of ImageNet's 1,000 classes, but data=digits has 10 \(0, 1, 2 …\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED)
def test_refused_before_training(overrides: str, run, tmp_path: Path) -> None:
    kind, said = REFUSED[overrides]
    with pytest.raises(kind, match=said):
        run(tmp_path, *overrides.split())
    assert not list(tmp_path.iterdir())


def test_refused_by_eval(config: Config, tmp_path: Path, tiny_run) -> None:
    with pytest.raises(UserError, match=r"evaluators=\[\] looks at nothing"):
        evaluation.run(config(*IMAGES, *NETWORK, "evaluators=[]", name="eval"))
    with pytest.raises(DataError, match="lacks classes"):
        evaluation.run(config(*IMAGES, *NETWORK, "evaluators=[v2]", name="eval"))
    digits = tiny_run(tmp_path, "train.epochs=1", "train.max_steps=1") / "checkpoints" / "last.pt"
    with pytest.raises(UserError, match=r"last\.pt has 10 \(0, 1, 2 …\): leave these evaluators out"):
        evaluation.run(
            config(f"checkpoint={digits}", "evaluators=[sketch]", "evaluators.sketch.partial=true", name="eval")
        )


@pytest.mark.parametrize(("metric", "best"), [("top1", 1), ("mean_per_class", 2)])
def test_the_metric_decides_which_epoch_was_best(
    metric: str, best: int, tiny_run, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    found = iter([Scores(50.0, 60.0, 20.0, 1.0, 9), Scores(40.0, 60.0, 30.0, 1.0, 9)])
    monkeypatch.setattr("gab.training.evaluation.score", lambda predictions: next(found))
    folder = tiny_run(tmp_path, f"data.metric={metric}", "train.max_steps=1", "train.ema_decay=null")
    stored = checkpoint.load(folder / "checkpoints" / "best.pt")
    judged = [row[metric] for row in rows(folder, "eval")]
    assert (stored["step"], stored["best_score"]) == (best, max(judged))
    assert [row["mean_per_class"] for row in rows(folder, "eval")] == [20.0, 30.0]
    said = capsys.readouterr()
    assert f"epoch 2/2: {metric} {judged[1]:.2f}" in said.err
    assert f"(best {max(judged):.2f})" in said.err
    assert f"{train.METRICS[metric]} {judged[1]:.2f} % after the last epoch" in said.out
