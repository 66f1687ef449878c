import csv
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.evaluators import Predictions, predict, score
from gab.evaluators.accuracy import write_per_class

CLASSES = 7


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


def split(images: int, rank: int = 0, processes: int = 1, batch: int = 4) -> list[Batch]:
    """Contiguous shards of a data set of random images, the last batch of each shorter."""
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(256, (images, 3, 2, 2), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    shard = torch.arange(images * rank // processes, images * (rank + 1) // processes)
    return [Batch(pixels[part], labels[part], part) for part in shard.split(batch) if len(part)]


def network(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes), nn.Dropout(0.9))


def prepare(images: Tensor) -> Tensor:
    return images.float() / 255


def work(processes: Processes, out: Path) -> None:
    torch.set_num_threads(1)
    for images in (2, 11):
        predictions = predict(network(), split(images, processes.rank, processes.count), prepare, processes)
        with open(out / f"{processes.rank}-{images}.pickle", "wb") as file:
            pickle.dump(predictions, file)


@pytest.mark.parametrize("processes", [1, 3])
def test_every_image_once(processes: int, forking: None, tmp_path: Path) -> None:
    """Eleven images leave shorter last batches, two leave a process of three without any."""
    launch(work, (tmp_path,), count=processes, device="cpu")
    for images in (2, 11):
        [whole] = split(images, batch=images)
        logits = network().eval()(prepare(whole.images))
        losses = F.cross_entropy(logits, whole.labels, reduction="none").detach().numpy()
        for rank in range(processes):
            found: Predictions = pickle.loads((tmp_path / f"{rank}-{images}.pickle").read_bytes())
            assert found.image.tolist() == list(range(images))
            assert np.array_equal(found.label, whole.labels.numpy())
            assert np.array_equal(found.top5, logits.topk(5).indices.numpy())
            np.testing.assert_allclose(found.log_loss, losses, rtol=1e-5)
            assert score(found).images == images


def test_all_batches_look_alike() -> None:
    """In shape and memory format, the last one too: a compiled network would else be compiled once more."""
    seen = set()

    def look(images: Tensor) -> Tensor:
        seen.add((images.shape, images.stride()))
        return prepare(images)

    as_loaded = [b._replace(images=b.images.contiguous(memory_format=torch.channels_last)) for b in split(10)]
    predictions = predict(network(), as_loaded, look, Processes())
    assert len(as_loaded[-1].images) == 2
    assert seen == {((4, 3, 2, 2), (12, 1, 6, 3))}
    assert np.array_equal(predictions.log_loss, predict(network(), split(10), prepare, Processes()).log_loss)


def test_saved_with_names(tmp_path: Path) -> None:
    predictions = predict(network(), split(6), prepare, Processes())
    predictions.save(tmp_path / "predictions.npz", [f"{n}.jpg" for n in range(6)])
    with np.load(tmp_path / "predictions.npz") as stored:
        assert stored["image"].tolist() == [f"{n}.jpg" for n in range(6)]
        for name in ("label", "top5", "log_loss"):
            assert np.array_equal(stored[name], getattr(predictions, name))


def test_scores() -> None:
    top5 = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 6, 0, 1, 2], [6, 5, 4, 3, 2]])
    scores = score(Predictions(np.arange(4), np.zeros(4, int), top5, np.float32([1, 2, 3, 4])))
    assert (scores.top1, scores.top5, scores.log_loss, scores.images) == (25.0, 75.0, 2.5, 4)


def test_fewer_than_five_classes() -> None:
    three = [batch._replace(labels=batch.labels % 3) for batch in split(9)]
    predictions = predict(network(3), three, prepare, Processes())
    assert predictions.top5.shape == (9, 3)
    assert score(predictions).top5 == 100


def test_training_mode_and_gradients_are_left_alone() -> None:
    model = network().train()
    predict(model, split(3), prepare, Processes())
    assert model.training
    model.eval()
    predict(model, split(3), prepare, Processes())
    assert not model.training


def test_bf16_rounds() -> None:
    exact, rounded = (predict(network(), split(9), prepare, Processes(), bf16=bf16) for bf16 in (False, True))
    assert not np.array_equal(exact.log_loss, rounded.log_loss)
    np.testing.assert_allclose(exact.log_loss, rounded.log_loss, atol=0.05)


def test_per_class(tmp_path: Path) -> None:
    predictions = predict(network(), split(40), prepare, Processes())
    names = [f"class {n}" for n in range(CLASSES)] + ["never seen"]
    write_per_class(predictions, names, tmp_path / "classes.csv")
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["name"] for row in rows] == names[:-1]
    counts = np.array([int(row["images"]) for row in rows])
    assert np.array_equal(counts, np.bincount(predictions.label, minlength=CLASSES))
    for column, total in (("top1", score(predictions).top1), ("log_loss", score(predictions).log_loss)):
        mean = np.average([float(row[column]) for row in rows], weights=counts)
        assert mean == pytest.approx(total, abs=1e-3)
