"""The evaluation sets as they are published: small replicas with the true names of folders and files."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.config import DataConfig
from data.errors import DataError
from data.evaluation_sets import SETS, EvaluationSet

WNIDS = [f"n{1440764 + 7 * n:08d}" for n in range(12)]
DATA = DataConfig(name="imagenet", reader="imagenet", root="nowhere", loader="torch", image_size=16, eval_crop=1.0)


def save(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(path, format="JPEG", quality=100)


def published(monkeypatch: pytest.MonkeyPatch, name: str, images: int) -> None:
    """As if the set had so many images."""
    monkeypatch.setitem(SETS, name, replace(SETS[name], images=images))


def opened(name: str, root: Path, part: str = "", classes: Sequence[str] = tuple(WNIDS), **changes):
    return EvaluationSet(name, root, DATA, classes, **changes).open(part, batch_size=5, workers=0)


def everything(batches) -> dict[str, tuple[int, int]]:
    """Label and grey level by file name."""
    found = {}
    for batch in batches:
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            found[batches.names[index]] = (int(label), round(float(image.float().mean())))
    return found


def test_published_counts() -> None:
    """As the papers and READMEs of the sets give them."""
    assert {name: one.images for name, one in SETS.items()} == {
        "real": 50_000, "v2": 10_000, "a": 7_500, "r": 30_000, "sketch": 50_889, "c": 50_000,
    }  # fmt: skip


def test_v2_folders_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder 10 is class 10, though it comes after folder 1 in the alphabet."""
    published(monkeypatch, "v2", 12)
    for number in range(12):
        save(tmp_path / str(number) / "0a1b2c.jpeg", 20 * number)
    batches = opened("v2", tmp_path)
    assert everything(batches) == {f"{n}/0a1b2c.jpeg": (n, 20 * n) for n in range(12)}
    assert batches.classes == WNIDS
    assert sorted(map(str, range(12)))[2] == "10"


@pytest.mark.parametrize(("name", "file"), [("a", "0.001_acorn.jpg"), ("r", "art_0.jpg"), ("sketch", "sketch_1.JPEG")])
def test_folders_by_wordnet_id(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are positions among the classes that were asked for; a README beside the folders is no class."""
    classes = WNIDS[3:8]
    published(monkeypatch, name, 5)
    for number, wnid in enumerate(classes):
        save(tmp_path / wnid / file, 30 * number)
    (tmp_path / "README.txt").touch()
    assert everything(opened(name, tmp_path, classes=classes)) == {
        f"{wnid}/{file}": (n, 30 * n) for n, wnid in enumerate(classes)
    }


def test_corruptions_have_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "c", 2)
    parts = ["snow/1", "snow/5"]
    for part in parts:
        for number in (0, 1):
            save(tmp_path / part / WNIDS[number] / "ILSVRC2012_val_00000293.JPEG", 100 * number + int(part[-1]))
    corruptions = EvaluationSet("c", tmp_path, DATA, WNIDS[:2])
    corruptions.check(parts)
    for part in parts:
        found = everything(corruptions.open(part, batch_size=5, workers=0)).values()
        assert sorted(found) == [(n, 100 * n + int(part[-1])) for n in (0, 1)]
    with pytest.raises(
        DataError, match=r"no folder .*snow/3 with images of ImageNet-C; unpack .*conf/evaluators/c\.ya"
    ):
        corruptions.check([*parts, "snow/3"])


def test_real_looks_at_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "real", 3)
    for number, wnid in ((2, WNIDS[0]), (1, WNIDS[1]), (3, WNIDS[1])):
        save(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", 10 * number)
    found = everything(opened("real", tmp_path))
    assert {name[-13:-5]: grey for name, (_, grey) in found.items()} == {f"{n:08d}": 10 * n for n in (1, 2, 3)}
    EvaluationSet("real", tmp_path, DATA, WNIDS).check()
    nowhere = tmp_path / "nowhere"
    for look in (lambda s: s.check(), lambda s: s.open(batch_size=5, workers=0)):
        with pytest.raises(DataError, match=rf"{nowhere} does not exist; set evaluators\.real\.root=FOLDER.*archives"):
            look(EvaluationSet("real", nowhere, DATA, WNIDS))
    published(monkeypatch, "real", 4)
    for look in (lambda s: s.check(), lambda s: s.open(batch_size=5, workers=0)):
        with pytest.raises(DataError, match=r"holds 3 images where ImageNet's validation set has 4"):
            look(EvaluationSet("real", tmp_path, DATA, WNIDS))


def test_two_processes_share_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "v2", 12)
    for number in range(12):
        save(tmp_path / str(number) / "x.jpeg")
    sets = EvaluationSet("v2", tmp_path, DATA, WNIDS)
    shares = [everything(sets.open(batch_size=5, workers=0, rank=rank, processes=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    assert len({name for share in shares for name in share}) == 12


@pytest.fixture
def sketches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    published(monkeypatch, "sketch", 3)
    for wnid in WNIDS[:3]:
        save(tmp_path / "sketch" / wnid / "sketch_0.JPEG")
    return tmp_path / "sketch"


def refused(root: Path, **changes) -> str:
    """What opening and checking the set say, which is the same."""
    said = set()
    for look in (lambda s: s.check(), lambda s: s.open(batch_size=5, workers=0)):
        with pytest.raises(DataError) as error:
            look(EvaluationSet("sketch", root, DATA, WNIDS[:3], **changes))
        said.add(str(error.value))
    [sentence] = said
    assert "\n" not in sentence
    return sentence


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert f"There is no folder {tmp_path / 'gone'} with images of ImageNet-Sketch" in refused(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in refused(tmp_path / "empty")


def test_too_few_and_too_many_images(sketches: Path) -> None:
    save(sketches / WNIDS[0] / "sketch_1.JPEG")
    assert "holds 4 images where ImageNet-Sketch has 3; unpack it again" in refused(sketches)
    assert "holds 4 images where" in refused(sketches, partial=True)
    (sketches / WNIDS[0] / "sketch_1.JPEG").unlink()
    EvaluationSet("sketch", sketches, DATA, WNIDS[:3]).check()


def test_a_class_is_missing(sketches: Path) -> None:
    shutil.rmtree(sketches / WNIDS[1])
    said = refused(sketches)
    assert f"lacks class {WNIDS[1]} of ImageNet-Sketch" in said
    assert "evaluators.sketch.partial=true" in said
    found = everything(opened("sketch", sketches, classes=WNIDS[:3], partial=True))
    assert [label for label, _ in found.values()] == [0, 2]  # not 0 and 1: labels are those of the whole set


def test_a_folder_of_another_set(sketches: Path) -> None:
    save(sketches / "n99999999" / "x.JPEG")
    assert "has class n99999999, which ImageNet-Sketch does not have" in refused(sketches)
    assert "n99999999" in refused(sketches, partial=True)


def test_an_impossible_crop(sketches: Path) -> None:
    with pytest.raises(DataError, match=r"data\.eval_crop is 2\.0"):
        EvaluationSet("sketch", sketches, replace(DATA, eval_crop=2.0), WNIDS[:3]).open(batch_size=5, workers=0)
