import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader

from data.batches import Batch, EvalBatches, TrainBatches, open_eval, open_train
from data.config import CropConfig, DataConfig, WriteConfig
from data.errors import DataError
from data.files import beton, load_sidecar
from data.torch_loader import TrainDataset
from data.writer import write_split

BATCH, SEED = 12, 5
needs_ffcv = pytest.mark.ffcv


@pytest.fixture(scope="module")
def data(photo_folder: Path) -> DataConfig:
    return DataConfig(name="folder", root=str(photo_folder), image_size=64)


@pytest.fixture(scope="module")
def torch_data(data: DataConfig) -> DataConfig:
    return replace(data, loader="torch")


@pytest.fixture(scope="module")
def torch_train(torch_data: DataConfig) -> TrainBatches:
    return open_train(torch_data, batch_size=BATCH, seed=SEED, workers=0)


@pytest.fixture(scope="module")
def ffcv_train(data: DataConfig) -> Iterator[TrainBatches]:
    """One loader for many tests, since each compiles for seconds."""
    pytest.importorskip("ffcv")
    write_split(data, "train", workers=2)
    batches = open_train(data, batch_size=BATCH, seed=SEED, workers=2)
    yield batches
    batches.close()


@pytest.fixture(scope="module")
def ffcv_eval(data: DataConfig) -> Iterator[EvalBatches]:
    pytest.importorskip("ffcv")
    write_split(data, "val", workers=2)
    batches = open_eval(data, batch_size=4, workers=2)
    yield batches
    batches.close()


def gather(batches: Iterator[Batch]) -> SimpleNamespace:
    """An epoch, all its batches kept before any is looked at."""
    kept = list(batches)
    images, labels, indices = (torch.cat([getattr(b, name) for b in kept]) for name in ("images", "labels", "indices"))
    digest = sum(b.digest for b in kept) % 2**64
    return SimpleNamespace(images=images, labels=labels, indices=indices, digest=digest, steps=len(kept))


def equal(a: SimpleNamespace, b: SimpleNamespace) -> bool:
    return a.digest == b.digest and all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "labels", "indices")
    )


def loader_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if type(thread).__name__ == "Epoch"}


def test_batches_have_the_promised_form(torch_train):
    batch = next(torch_train.epoch(0))
    assert (batch.images.shape, batch.images.dtype) == ((BATCH, 3, 64, 64), torch.uint8)
    assert (batch.labels.dtype, batch.indices.dtype) == (torch.int64, torch.int64)
    assert torch.equal(
        batch.labels, torch.from_numpy(torch_train.decoder.loader.loader.dataset.source.labels)[batch.indices]
    )
    assert torch_train.steps_per_epoch == torch_train.num_samples // BATCH


def test_epochs_repeat_and_differ(torch_train):
    first, second = gather(torch_train.epoch(0)), gather(torch_train.epoch(1))
    assert equal(first, gather(torch_train.epoch(0)))
    assert first.digest != second.digest
    assert len(set(first.indices.tolist())) == len(first.indices)  # each sample at most once


def test_an_epoch_starts_at_any_step(torch_train):
    whole, rest = list(torch_train.epoch(2)), list(torch_train.epoch(2, start=2))
    assert len(rest) == len(whole) - 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert a.digest == b.digest
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_global_batch(torch_data, torch_train, processes):
    ranks = [
        list(open_train(torch_data, batch_size=BATCH, seed=SEED, rank=r, processes=processes, workers=0).epoch(1))
        for r in range(processes)
    ]
    for step, whole in enumerate(torch_train.epoch(1)):
        parts = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
        assert sum(part.digest for part in parts) % 2**64 == whole.digest


def test_torch_workers_change_nothing(torch_data, torch_train):
    batches = open_train(torch_data, batch_size=BATCH, seed=SEED, workers=2)
    try:
        assert equal(gather(batches.epoch(3)), gather(torch_train.epoch(3)))
        assert equal(gather(batches.epoch(0)), gather(torch_train.epoch(0)))  # by the same workers
    finally:
        batches.close()


@pytest.mark.parametrize("hanging", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_a_worker_that_hangs_in_its_fork_is_started_again(torch_data, torch_train, hanging, monkeypatch):
    """As often as the loader has patience for."""
    expected = gather(torch_train.epoch(0))
    starts, others = [], set(multiprocessing.active_children())

    def begin_or_hang(begun, worker):
        if len(starts) <= hanging and worker == 1:
            time.sleep(1000)
        begun.release()

    def fork(self, *args):
        starts.append(self)
        return original(self, *args)

    original = DataLoader._get_iterator
    monkeypatch.setattr(DataLoader, "_get_iterator", fork)
    monkeypatch.setattr("data.torch_loader.begin", begin_or_hang)
    monkeypatch.setattr("data.torch_loader.PATIENCE", 1.0)
    batches = open_train(torch_data, batch_size=BATCH, seed=SEED, workers=2)
    if hanging == 1:
        assert equal(gather(batches.epoch(0)), expected)
        assert len(starts) == 2
    else:
        with pytest.raises(RuntimeError, match="did not begin in 3 times"):
            gather(batches.epoch(0))
    batches.close()
    assert set(multiprocessing.active_children()) <= others


def test_a_worker_that_hangs_later_does_not_hold_up_the_end(torch_data, monkeypatch):
    others, original, asked = set(multiprocessing.active_children()), TrainDataset.__getitem__, []

    def once(self, request):
        asked.append(request)
        return original(self, request) if len(asked) == 1 else time.sleep(1000)

    monkeypatch.setattr(TrainDataset, "__getitem__", once)
    monkeypatch.setattr("data.torch_loader.GRACE", 1.0)
    batches = open_train(torch_data, batch_size=2, seed=SEED, workers=1)
    next(batches.epoch(0))
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 4  # torch alone waits for 5
    assert set(multiprocessing.active_children()) <= others


def test_a_dead_worker_raises(torch_data):
    batches = open_train(torch_data, batch_size=2, seed=SEED, workers=1)
    iterator = batches.epoch(0)
    next(iterator)
    os.kill(batches.decoder.loader.loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(iterator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_all_processes_ends_no_worker(torch_data, number):
    """SLURM's go to every process of a job; whether the run stops, and when, is for its own processes to say."""
    batches = open_train(torch_data, batch_size=2, seed=SEED, workers=1)
    iterator = batches.epoch(0)
    next(iterator)
    os.kill(batches.decoder.loader.loader._iterator._workers[0].pid, number)
    assert len(list(iterator)) == batches.steps_per_epoch - 1
    batches.close()


@needs_ffcv
def test_both_loaders_agree(ffcv_train, torch_train):
    """Equal order, boxes and flips; equal pixels where the file's JPEG bytes are the original ones."""
    ours, theirs = gather(ffcv_train.epoch(0)), gather(torch_train.epoch(0))
    assert ours.steps == ffcv_train.steps_per_epoch == torch_train.steps_per_epoch
    assert ours.digest == theirs.digest
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.labels, theirs.labels)
    difference = (ours.images.int() - theirs.images.int()).abs().float().mean(dim=(1, 2, 3))
    names = np.array(torch_train.decoder.loader.loader.dataset.source.names)[ours.indices]
    original = np.array([name != "flower/whole.jpg" for name in names])  # the one above the stored size
    assert difference[original].max() <= 1.3  # the tolerance that is promised
    assert difference[original].mean() <= 0.05  # in fact 0, where Pillow and FFCV have the same libjpeg-turbo inside


def test_copies_are_cut_by_themselves_and_shared_by_processes(torch_data, torch_train):
    """Repeated augmentation: keys tell the copies apart; processes and the first step change nothing."""
    config = replace(torch_data, repeats=3, crop=CropConfig(interpolation="bicubic"))
    whole = list(open_train(config, batch_size=BATCH, seed=SEED, workers=0).epoch(1))
    count = torch_train.num_samples
    seen = gather(iter(whole))
    assert seen.steps == torch_train.steps_per_epoch
    labels = torch.from_numpy(torch_train.decoder.loader.loader.dataset.source.labels)
    assert torch.equal(seen.labels, labels[seen.indices % count])
    first, second = (seen.images[seen.indices // count == copy] for copy in (0, 1))
    assert not any(torch.equal(a, b) for a in first for b in second)
    ranks = [
        list(open_train(config, batch_size=BATCH, seed=SEED, rank=r, processes=2, workers=0).epoch(1, start=1))
        for r in range(2)
    ]
    for step, batch in enumerate(whole[1:]):
        parts = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
        assert sum(part.digest for part in parts) % 2**64 == batch.digest


@needs_ffcv
@pytest.mark.parametrize(("mode", "repeats"), [("raw", 3)])
def test_both_loaders_agree_to_the_bit_from_raw(data, torch_data, mode, repeats):
    pytest.importorskip("ffcv")
    write, crop = WriteConfig(mode=mode, max_size=200), CropConfig(scale=[0.02, 1.0], flip=0.3)
    raw, same = (replace(config, write=write, crop=crop, repeats=repeats) for config in (data, torch_data))
    write_split(raw, "train", workers=2)
    ours = open_train(raw, batch_size=BATCH, seed=SEED, processes=2, rank=1, workers=1)
    theirs = open_train(same, batch_size=BATCH, seed=SEED, processes=2, rank=1, workers=0)
    try:
        assert equal(gather(ours.epoch(4)), gather(theirs.epoch(4)))
    finally:
        ours.close()


@needs_ffcv
def test_ffcv_workers_batch_size_and_start_change_nothing(data, ffcv_train):
    other = open_train(data, batch_size=BATCH // 3, seed=SEED, workers=1)
    try:
        smaller = list(other.epoch(1))
        for n, batch in enumerate(ffcv_train.epoch(1)):
            parts = smaller[3 * n : 3 * n + 3]
            assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
            assert batch.digest == sum(part.digest for part in parts) % 2**64
        assert equal(gather(other.epoch(1, start=2)), gather(iter(smaller[2:])))
    finally:
        other.close()


@needs_ffcv
def test_the_expected_rate_is_that_of_the_threads(data, ffcv_train):
    alone = open_train(data, batch_size=BATCH, seed=SEED, workers=1)
    assert 500 < alone.rate() < 10_000  # images of 60 to 500 pixels
    assert ffcv_train.rate() == ffcv_train.decoder.file.workers * alone.rate()
    alone.close()


def test_the_torch_loaders_rate_is_measured(torch_train, monkeypatch):
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr("data.torch_loader.time.perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch_train.decoder.loader, "workers", 3)
    assert torch_train.rate() == 3 * 32 / 2


@needs_ffcv
def test_batches_are_never_overwritten(ffcv_train):
    kept = list(ffcv_train.epoch(0))
    copies = [batch.images.clone() for batch in ffcv_train.epoch(0)]
    assert len({batch.images.data_ptr() for batch in kept}) == len(kept)
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, copy)


@needs_ffcv
def test_digest_is_of_what_the_decoder_did(ffcv_train, monkeypatch):
    honest = gather(ffcv_train.epoch(0)).digest
    table = ffcv_train.decoder.decoder.crops

    def tamper(*arguments):
        crops = original(*arguments)
        crops[0, 4] ^= 1  # one flip
        return crops

    import data.ffcv_loader

    original = data.ffcv_loader.draw_crops
    monkeypatch.setattr(data.ffcv_loader, "draw_crops", tamper)
    assert gather(ffcv_train.epoch(0)).digest != honest
    assert not ffcv_train.decoder.decoder.used.any()  # read once
    assert table is ffcv_train.decoder.decoder.crops  # whose address is compiled in


@needs_ffcv
def test_leaving_early_stops_the_thread(ffcv_train):
    others = loader_threads()  # of tests before
    for _ in ffcv_train.epoch(0):
        assert len(loader_threads() - others) == 1
        break
    assert loader_threads() <= others
    held = ffcv_train.epoch(0)  # not closed by its last reference going away
    next(held)
    next(ffcv_train.epoch(1))
    assert len(loader_threads() - others) <= 1
    ffcv_train.close()
    assert loader_threads() <= others


@pytest.mark.parametrize("loader", ["ffcv_train", "torch_train"])
def test_one_epoch_at_a_time(request, loader):
    if loader == "ffcv_train":
        pytest.importorskip("ffcv")
    batches = request.getfixturevalue(loader)
    first, whole = batches.epoch(0), gather(batches.epoch(1))
    next(first)
    second = batches.epoch(1)
    begin = next(second)
    with pytest.raises(RuntimeError, match="epoch 0 was ended"):
        next(first)
    rest = gather(second)
    assert torch.equal(torch.cat([begin.indices, rest.indices]), whole.indices)


@needs_ffcv
def test_an_error_in_the_thread_is_raised(ffcv_train, monkeypatch):
    from data.ffcv_loader import Epoch

    monkeypatch.setattr(Epoch, "run_pipeline", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="has failed") as caught:
        list(ffcv_train.epoch(0))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.setattr(Epoch, "run", lambda _: None)  # a thread that goes without a word
    with pytest.raises(RuntimeError, match="died"):
        list(ffcv_train.epoch(0))


@needs_ffcv
def test_a_damaged_image_is_named(data, ffcv_train):
    at = int(ffcv_train.decoder.file.sizes["data_ptr"][3])
    with beton(data, "train").open("r+b") as file:
        file.seek(at)
        start = file.read(2)
        file.seek(at)
        file.write(b"no")
        file.flush()
        try:
            with pytest.raises(DataError, match=r"flower/03.jpg .*is damaged"):
                list(ffcv_train.epoch(0))
        finally:
            file.seek(at)
            file.write(start)


@needs_ffcv
def test_threads_of_torch_are_left_alone(data, ffcv_train):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        more = open_train(data, batch_size=BATCH, seed=SEED, workers=10_000)  # more than there are cores
        assert f"threads: {ffcv_train.decoder.file.workers}" in more.describe()
        next(ffcv_train.epoch(0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@needs_ffcv
def test_memory_is_the_least_of_the_cgroups(tmp_path):
    from data.ffcv_loader import usable_memory

    groups = tmp_path / "sys/fs/cgroup"
    step = groups / "slurm/job_7/step_0"
    step.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    machine = usable_memory(tmp_path)
    assert machine > 10**8
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/elsewhere\n0::/slurm/job_7/step_0\n")
    (step / "memory.max").write_text("max\n")
    assert usable_memory(tmp_path) == machine
    (step.parent / "memory.max").write_text("5000\n")
    (groups / "slurm/memory.max").write_text("6000\n")
    assert usable_memory(tmp_path) == 5000
    (groups / "memory.max").write_text("4000\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert usable_memory(tmp_path) == 4000


def timm_images(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's own transform and loader, as uint8."""
    dataset = create_dataset("", root=str(root), split="val")
    loader = create_loader(
        dataset,
        input_size=(3, 64, 64),
        batch_size=5,
        is_training=False,
        use_prefetcher=False,
        interpolation="bicubic",
        crop_pct=0.9,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=0,
        persistent_workers=False,
    )
    images, labels = zip(*loader, strict=True)
    return (torch.cat(images) * 255).round().to(torch.uint8), torch.cat(labels)


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
@pytest.mark.parametrize("loader", [pytest.param("ffcv", marks=needs_ffcv), "torch"])
def test_evaluation_is_timm_s_on_any_number_of_processes(request, torch_data, photo_folder, loader, processes):
    batches = (
        request.getfixturevalue("ffcv_eval") if loader == "ffcv" else open_eval(torch_data, batch_size=4, workers=0)
    )
    images, labels = timm_images(photo_folder)
    assert batches.num_samples == len(images)
    assert len(batches.names) == len(images)
    shards = [list(EvalBatches(batches.decoder, 4, rank, processes, None)) for rank in range(processes)]
    ours = [batch for shard in shards for batch in shard]
    assert torch.equal(torch.cat([batch.indices for batch in ours]), torch.arange(len(images)))
    assert torch.equal(torch.cat([batch.labels for batch in ours]), labels)
    assert torch.equal(torch.cat([batch.images for batch in ours]), images)
    assert {batch.digest for batch in ours} == {0}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_part_is_the_same_part_for_any_number_of_processes(torch_data, processes):
    shares = [
        open_eval(torch_data, batch_size=4, workers=0, limit=7, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    assert [share.num_samples for share in shares] == [7] * processes
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    images = len(shares[0].names)
    assert images > 7
    spread = torch.arange(7) * images // 7  # of a split that is sorted by class
    assert torch.equal(torch.cat([batch.indices for share in shares for batch in share]), spread)


def test_any_split_can_be_evaluated_from_the_originals(torch_data, torch_train):
    batches = open_eval(torch_data, batch_size=16, workers=0, split="train")
    assert sum(len(batch.labels) for batch in batches) == batches.num_samples == torch_train.num_samples


@pytest.mark.parametrize(
    ("change", "batch", "words"),
    [
        ({"loader": "tfrecord"}, BATCH, "ffcv, torch or gpu"),
        ({"crop": CropConfig(flip=2.0)}, BATCH, "data.crop.flip"),
        ({}, 13, "set a multiple"),
        ({"repeats": 0}, BATCH, "data.repeats is 0"),
        ({"repeats": 7}, BATCH, "half of the global batch of 12"),
        ({}, 2000, "lower the batch size"),
    ],
)
def test_settings_that_cannot_be(torch_data, change, batch, words):
    with pytest.raises(DataError, match=words):
        open_train(replace(torch_data, **change), batch_size=batch, seed=0, processes=2)


def test_unknown_source_of_evaluation(torch_data):
    with pytest.raises(DataError, match="beton or original"):
        open_eval(replace(torch_data, eval_source="web"), batch_size=4)


def test_an_unreadable_image_is_named_without_a_traceback(torch_data, tmp_path):
    shutil.copytree(torch_data.root, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "roof" / "05.jpg").write_bytes(b"nothing")
    batches = open_train(replace(torch_data, root=str(tmp_path / "photos")), batch_size=3, seed=SEED, workers=1)
    with pytest.raises(DataError, match="roof/05.jpg cannot be read") as caught:
        list(batches.epoch(0))
    assert "Traceback" not in str(caught.value)
    batches.close()


@needs_ffcv
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), r"does not exist.*python scripts/prepare.py folder"),
        (lambda path: os.truncate(path, path.stat().st_size - 10), "cut short"),
        (lambda path: path.write_bytes(b"PK" * 5000), "not a .beton file"),
    ],
)
def test_files_that_cannot_be_used(data, ffcv_train, tmp_path, damage, words):
    path = beton(data, "train")
    elsewhere = replace(data, root=str(tmp_path))
    shutil.copytree(path.parent, tmp_path / "beton")
    damage(beton(elsewhere, "train"))
    with pytest.raises(DataError, match=words):
        open_train(elsewhere, batch_size=BATCH, seed=SEED)


@needs_ffcv
def test_a_file_of_another_transform_is_refused(data, ffcv_eval, tmp_path):
    path, other = beton(data, "val"), replace(data, root=str(tmp_path), eval_crop=0.875)
    (tmp_path / "beton").mkdir()
    for part in path.parent.glob(f"{path.name}*"):
        shutil.copy(part, tmp_path / "beton" / part.name.replace(path.name, beton(other, "val").name))
    assert load_sidecar(beton(other, "val")).settings["crop"] == 0.9
    with pytest.raises(DataError, match=r"'crop': 0.9.*the config says .*0.875"):
        open_eval(other, batch_size=4)


@pytest.mark.usefixtures("no_ffcv")
def test_without_ffcv_the_remedy_is_named(data):
    write_split(data, "train", workers=2)
    with pytest.raises(DataError, match=r"apt-get install .*libturbojpeg0-dev.*conda .*data.loader=torch"):
        open_train(data, batch_size=BATCH, seed=SEED)


@pytest.mark.usefixtures("no_ffcv")
def test_evaluation_beside_the_gpu_loader_names_that_one(data):
    write_split(data, "val", workers=2)
    gpu = replace(data, loader="gpu")
    with pytest.raises(DataError, match=r"data.loader=gpu needs FFCV to read stored .*data.eval_source=original"):
        open_eval(gpu, batch_size=4)
    assert len(open_eval(replace(gpu, eval_source="original"), batch_size=4, workers=0)) > 0
