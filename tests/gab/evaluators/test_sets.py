"""Evaluators on images whose answers are known: every score by hand."""

import csv
import gzip
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.errors import UserError
from gab.evaluators import Accuracy, Conditions, Corruptions, Look, Real, flat, logits, look, read_labels, synsets
from gab.evaluators.corruptions import ALEXNET, PARTS
from gab.evaluators.in_training import fields, own_fields
from gab.evaluators.real import IMAGES
from tests.colours import Colours, pixels

Answer = tuple[int, int, int]  # first choice, second choice, label


class Shown:
    """Batches of images that are answered so, as one of several processes reads them."""

    def __init__(self, answers: list[Answer], names: list[str] | None = None, rank: int = 0, processes: int = 1):
        self.names = names or [f"{n}.png" for n in range(len(answers))]
        self.classes = list(synsets())
        images = torch.tensor(np.stack([pixels(best, second, 8) for best, second, _ in answers])).permute(0, 3, 1, 2)
        labels = torch.tensor([label for _, _, label in answers])
        share = torch.arange(len(answers) * rank // processes, len(answers) * (rank + 1) // processes)
        self.batches = [
            SimpleNamespace(images=images[part], labels=labels[part], indices=part)
            for part in share.split(3)
            if len(part)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Parts:
    """The images of an evaluator."""

    def __init__(self, parts: dict[str, Shown]):
        self.parts, self.asked, self.closed = parts, [], 0

    def __call__(self, part: str = "") -> Shown:
        self.asked.append(part)
        return self.parts[part]

    def close(self) -> None:
        self.closed += 1


def conditions(processes: Processes | None = None, folder: Path | None = None) -> Conditions:
    return Conditions(lambda images: images / 127.5 - 1, processes or Processes(), folder=folder)


def test_the_network_reads_what_is_painted() -> None:
    shown = Shown([(n, 999 - n, 0) for n in (0, 7, 40, 123, 999)])
    predictions = conditions().predict(Colours(), shown, "")
    assert predictions.top5[:, :2].tolist() == [[n, 999 - n] for n in (0, 7, 40, 123, 999)]


def test_classes_are_those_of_imagenet() -> None:
    assert len(synsets()) == 1000
    assert list(synsets()) == sorted(set(synsets()))
    assert (synsets()[0], synsets()[217], synsets()[701]) == ("n01440764", "n02102040", "n03888257")
    for subset in ("a", "r"):
        assert len(synsets(subset)) == 200
        assert [synsets()[number] for number in logits(subset)] == list(synsets(subset)) == sorted(synsets(subset))
    assert logits("a")[:3] == [6, 11, 13]
    assert logits("r")[:3] == [1, 2, 4]


def test_restricted_to_known_classes() -> None:
    """Labels count the 200 classes. Plainly one of four images is right, among the 200 classes two are."""
    known = logits("a")
    other, another = [n for n in range(1000) if n not in known][:2]
    answers = [
        (known[3], 0, 3),
        (other, known[5], 5),  # the best is not to be chosen
        (known[8], known[9], 9),  # wrong either way
        (other, another, 150),  # nothing of it is: all 200 are equal, the first is taken
    ]
    shown = Parts({"": Shown(answers)})
    result = Accuracy("a", kept=known)(Colours(), shown, conditions())
    assert (result.numbers["top1"], result.images) == (50.0, 4)
    plain = [(best, second, known[label]) for best, second, label in answers]
    assert Accuracy("a")(Colours(), Parts({"": Shown(plain)}), conditions()).numbers["top1"] == 25.0


def test_mean_per_class() -> None:
    """Three of four, and none of one: 60 % of the images, 37.5 % per class; 998 classes have no images."""
    answers = [(5, 0, 5), (5, 0, 5), (5, 0, 5), (6, 0, 5), (5, 0, 6)]
    numbers = Accuracy("v2")(Colours(), Parts({"": Shown(answers)}), conditions()).numbers
    assert numbers["top1"] == 60.0
    assert numbers["mean_per_class"] == 37.5


def labelled(**lists: list[int]) -> list[list[int]]:
    """`labelled(_3=[7])`: the third image is of class 7, all others have no labels."""
    labels: list[list[int]] = [[] for _ in range(IMAGES)]
    for key, classes in lists.items():
        labels[int(key[1:]) - 1] = classes
    return labels


def name(number: int, folder: str = "n01440764/") -> str:
    return f"{folder}ILSVRC2012_val_{number:08d}.JPEG"


def test_real_leaves_out_what_has_no_label() -> None:
    """Any of the labels is right, whatever the folder says; images lie in another order than their numbers."""
    real = Real(labelled(_1=[5], _3=[7, 9], _4=[3], _50000=[999]))
    names = [name(50000, "n01443537/"), name(3), name(2), name(1), name(4, "")]
    shown = Shown([(999, 0, 1), (9, 0, 0), (0, 0, 0), (5, 0, 0), (0, 0, 0)], names)
    result = real(Colours(), Parts({"": shown}), conditions())
    assert result.images == 4
    assert result.numbers == {"top1": 75.0}


def test_real_refuses_other_images() -> None:
    for wrong in ("n01440764/n01440764_10026.JPEG", name(0), name(50001), "a_" + name(1, "")):
        with pytest.raises(UserError, match=r"is not an image of ImageNet's validation set.*evaluators\.real\.root"):
            Real(labelled(_1=[0]))(Colours(), Parts({"": Shown([(0, 0, 0)], [wrong])}), conditions())
    with pytest.raises(UserError, match="none of the images has ReaL labels"):
        Real(labelled(_1=[0]))(Colours(), Parts({"": Shown([(0, 0, 0)], [name(2)])}), conditions())


def test_labels_of_real(tmp_path: Path) -> None:
    """timm's copy is the published file: 50,000 lists, 3,163 of them empty."""
    labels = read_labels(None)
    assert (len(labels), sum(not one for one in labels)) == (50_000, 3_163)
    assert labels[1:4] == [[970, 795], [230, 231], [809]]
    text = json.dumps(labels).encode()
    (tmp_path / "real.json").write_bytes(text)
    (tmp_path / "real.json.gz").write_bytes(gzip.compress(text, 1))
    for path in tmp_path.iterdir():
        assert read_labels(str(path)) == labels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read .No such file"),
        ("{", "cannot be read"),
        ("[]", "is not a list of 50,000 lists"),
        (json.dumps([1] * 50_000), "is not a list of 50,000 lists"),
        (json.dumps([[1000]] * 50_000), "is not a list of 50,000 lists of classes from 0 to 999"),
    ],
)
def test_labels_that_are_none(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"evaluators\.real\.labels=.*real\.json {said}.*or null for timm's copy"):
        read_labels(str(path))


def corrupted(**errors: list[int]) -> Parts:
    """Four images per part; `errors` says how many are wrong at each severity, by default none."""
    wrong = {f"{name}/{severity}": count for name, counts in errors.items() for severity, count in enumerate(counts, 1)}
    return Parts({p: Shown([(0 if n < wrong.get(p, 0) else 1, 2, 1) for n in range(4)]) for p in PARTS})


def test_corruptions_by_hand(tmp_path: Path) -> None:
    """Snow: 0, 25, 50, 75 and 100 % wrong, AlexNet 86.6816 %; brightness: 25 % at each severity, AlexNet 56.4592 %."""
    parts = corrupted(snow=[0, 1, 2, 3, 4], brightness=[1, 1, 1, 1, 1])
    result = Corruptions()(Colours(), parts, conditions(folder=tmp_path))
    assert parts.asked == PARTS
    assert len(set(PARTS)) == 75
    assert result.images == 300
    assert result.numbers["error"] == pytest.approx((50 + 25) / 15)
    assert result.numbers["mce"] == pytest.approx(100 * (50 / 86.6816 + 25 / 56.4592) / 15)
    rows = {row["corruption"]: row for row in csv.DictReader((tmp_path / "corruptions.csv").open())}
    assert list(rows) == list(ALEXNET)
    assert [float(rows["snow"][f"error_{severity}"]) for severity in range(1, 6)] == [0, 25, 50, 75, 100]
    assert rows["brightness"]["relative_error"] == f"{100 * 25 / 56.4592:.3f}"
    assert rows["fog"]["error"] == "0.000"


def work(processes: Processes, out: Path) -> None:
    torch.set_num_threads(1)
    answers = [(n, n + 1, n if n % 3 else n + 1) for n in range(0, 110, 10)]
    names = [name(n + 1) for n in range(11)]
    shown = Parts({"": Shown(answers, names, processes.rank, processes.count)})
    some = Parts({p: Shown([(n, 0, 1) for n in (1, 1, 2)], None, processes.rank, processes.count) for p in PARTS})
    looks = {
        "top1": Look(Accuracy("top1"), shown),
        "a": Look(Accuracy("a", kept=list(range(200))), shown),
        "real": Look(Real(labelled(_2=[10], _3=[10], _11=[100, 4])), shown),
        "c": Look(Corruptions(), some),
    }
    results = look(looks, {"raw": Colours(), "ema": Colours()}, conditions(processes, out / "files"))
    with open(out / f"{processes.rank}.pickle", "wb") as file:
        pickle.dump(results, file)
    assert (shown.closed, some.closed) == (3, 1)


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_of_processes(processes: int, forking: None, tmp_path: Path) -> None:
    """Every process knows every number; one of them writes the files."""
    launch(work, (tmp_path,), count=processes, device="cpu")
    for rank in range(processes):
        results = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert results.keys() == {"raw", "ema"}
        for found in results.values():
            numbers = flat(found.items())
            assert (numbers["images"], numbers["top1"]) == (11, pytest.approx(100 * 7 / 11))
            assert (numbers["a_images"], numbers["a_top1"]) == (11, numbers["top1"])
            assert (numbers["real_images"], numbers["real_top1"]) == (3, pytest.approx(200 / 3))
            assert (numbers["c_images"], numbers["c_error"]) == (225, pytest.approx(100 / 3))
    files = {str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").rglob("*.*")}
    expected = {f"{stem}{weights}" for stem in ("predictions", "per_class") for weights in ("", "_ema")}
    expected = {f"{one}.{'npz' if one.startswith('predictions') else 'csv'}" for one in expected}
    assert files == expected | {f"a/{one}" for one in expected} | {"c/corruptions.csv", "c/corruptions_ema.csv"}


def test_training_mode_is_left_alone() -> None:
    model = nn.Sequential(Colours()).train()
    Accuracy("a", kept=[1, 2])(model, Parts({"": Shown([(1, 2, 0)])}), conditions())
    assert model.training
    assert model[0].training


def test_when_they_are_due() -> None:
    every, once = (Look(Corruptions(), Parts({}), number) for number in (2, None))
    assert [epoch for epoch in range(1, 6) if every.due(epoch, 5)] == [2, 4, 5]
    assert [epoch for epoch in range(1, 6) if once.due(epoch, 5)] == [5]


def test_names_in_the_record() -> None:
    raw = Accuracy("v2")(Colours(), Parts({"": Shown([(1, 2, 1), (1, 2, 2)])}), conditions())
    averaged = Accuracy("v2")(Colours(), Parts({"": Shown([(1, 2, 3), (1, 2, 2)])}), conditions())
    found = fields({"raw": {"v2": raw}, "ema": {"v2": averaged}})
    assert (found["v2_top1"], found["v2_top1_ema"], found["v2_images"]) == (50.0, 0.0, 2)
    assert "v2_images_ema" not in found
    scores = SimpleNamespace(top1=1.0, top5=2.0, mean_per_class=3.0, log_loss=4.0)
    assert own_fields({"ema": scores}) == {"top1_ema": 1.0, "top5_ema": 2.0, "mean_per_class_ema": 3.0, "loss_ema": 4.0}  # type: ignore[dict-item]
