"""Writing .beton files: what is stored, what is refused, and what a damaged file is called."""

import errno
import fcntl
import gzip
import io
import itertools
import json
import os
import resource
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from data import disk, files, writer
from data.beton import ALLOCATION, FIELD, HEADER, SAMPLE
from data.config import DataConfig, WriteConfig
from data.errors import DataError
from data.info import inspect
from data.prepare import prepare
from data.splits import open_source
from data.stored import is_plain_jpeg, stored_image
from data.writer import write_split
from tests.fresh import FRESH


@pytest.fixture
def own_photos(photo_config: DataConfig, tmp_path: Path) -> DataConfig:
    """A copy of the photos that the test may change."""
    return replace(
        photo_config,
        root=str(shutil.copytree(photo_config.root, tmp_path / "photos", ignore=shutil.ignore_patterns("beton"))),
    )


def stored(path: Path) -> list[tuple[bytes, int, int, bool, int]]:
    """The samples of a .beton file: bytes, width, height, is JPEG, label; found by the file's own tables."""
    raw = path.read_bytes()
    header = np.frombuffer(raw, HEADER, 1)[0]
    samples = np.frombuffer(raw, SAMPLE, int(header["num_samples"]), HEADER.itemsize + 2 * FIELD.itemsize)
    allocations = np.frombuffer(raw, ALLOCATION, offset=int(header["alloc_ptr"]))
    page = int(header["page_size"])
    found = []
    for sample, (i, start, size) in zip(samples, allocations.tolist(), strict=True):
        image = sample["image"]
        assert (i, start) == (len(found), image["data_ptr"])
        assert start // page == (start + size - 1) // page, "a sample must not straddle pages"
        found.append(
            (raw[start : start + size], *image[["width", "height"]].tolist(), image["mode"] == 0, sample["label"])
        )
    return found


def test_originals_are_kept_and_large_ones_encoded_again(own_photos: DataConfig) -> None:
    source = open_source(own_photos, "train")
    path = write_split(own_photos, "train")
    assert path.name == "train_max500_q90.beton"
    again = []
    for i, (data, width, height, is_jpeg, label) in enumerate(stored(path)):
        assert is_jpeg
        assert label == source.labels[i]
        assert (width, height) == stored_image(source, i, 500).size == Image.open(io.BytesIO(data)).size
        if not np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), np.asarray(source.image(i))):
            again.append(source.names[i])
    assert again == ["flower/whole.jpg"]
    sidecar = files.check(path, own_photos, "train")
    assert (sidecar.count, sidecar.reencoded, sidecar.skipped) == (len(source), 1, [])
    assert files.image_names(path) == source.names


def test_raw_is_the_pixels(own_photos: DataConfig) -> None:
    own_photos.write = WriteConfig(mode="raw", max_size=90)
    source = open_source(own_photos, "train")
    path = write_split(own_photos, "train")
    assert path.name == "train_max90_raw.beton"
    for i, (data, width, height, is_jpeg, _) in enumerate(stored(path)):
        assert not is_jpeg
        image = source.image(i)
        longer = max(image.size)
        if longer > 90:
            image = image.resize((round(image.width * 90 / longer), round(image.height * 90 / longer)), Image.BICUBIC)
        assert np.array_equal(np.frombuffer(data, np.uint8).reshape(height, width, 3), np.asarray(image))


def test_only_plain_jpegs_are_kept(own_photos: DataConfig, photos: dict[str, Image.Image]) -> None:
    """CMYK, a PNG named .JPEG, RGB without colour transform, 16 bits, palettes: encoded again, as RGB."""
    photo = photos["china"].crop((0, 100, 180, 220))
    wide = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) << 8)
    special = {
        "1_cmyk.JPEG": (photo.convert("CMYK"), {"format": "JPEG"}),
        "2_png.JPEG": (photo, {"format": "PNG"}),
        "3_rgb.JPEG": (photo, {"format": "JPEG", "keep_rgb": True}),
        "4_wide.png": (wide, {"format": "PNG"}),
        "5_palette.png": (photo.quantize(32), {"format": "PNG"}),
    }
    plain = {
        "6_grey.JPEG": (photo.convert("L"), {"format": "JPEG"}),
        "7_progressive.JPEG": (photo, {"format": "JPEG", "progressive": True}),
        "8_444.JPEG": (photo, {"format": "JPEG", "subsampling": "4:4:4"}),
        "9_422.JPEG": (photo, {"format": "JPEG", "subsampling": "4:2:2"}),
    }
    folder = Path(own_photos.root) / "train" / "roof"
    for old in folder.iterdir():
        old.unlink()
    for name, (image, how) in (special | plain).items():
        image.save(folder / name, quality=95, **how)
    path = write_split(own_photos, "train")
    source = open_source(own_photos, "train")
    for name, (data, *_) in zip(source.names, stored(path), strict=True):
        shown, original = (Image.open(file).convert("RGB") for file in (io.BytesIO(data), folder.parent / name))
        kept, file = np.array_equal(np.asarray(shown), np.asarray(original)), Path(name).name
        if file in special | plain:
            assert kept == is_plain_jpeg((folder.parent / name).read_bytes()) == (file in plain), name
            pixels = np.asarray(Image.open(io.BytesIO(data)), dtype=int)
            reference = np.asarray(photo.convert("L").convert("RGB") if file == "4_wide.png" else photo, dtype=int)
            if not kept:
                assert pixels.shape == reference.shape
                assert np.abs(pixels - reference).mean() < (9 if file == "5_palette.png" else 4), name


@pytest.mark.ffcv
def test_ffcv_decodes_what_was_stored(own_photos: DataConfig) -> None:
    """FFCV's own reader and decoder on every kind of JPEG that is kept: baseline, progressive, grey."""
    libffcv = pytest.importorskip("ffcv.libffcv")
    from ffcv.reader import Reader

    path = write_split(own_photos, "train")
    source = open_source(own_photos, "train")
    reader = Reader(str(path))
    assert reader.field_names == ["image", "label"]
    assert np.array_equal(reader.metadata["f1"], source.labels)
    content = np.fromfile(path, np.uint8)
    for i, (_, width, height, start) in enumerate(reader.metadata["f0"]):
        size = reader.alloc_table["size"][i]
        pixels = np.empty((height, width, 3), np.uint8)
        data = content[int(start) : int(start + size)]
        libffcv.imdecode(data, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        difference = np.abs(pixels.astype(int) - np.asarray(stored_image(source, i, 500)))
        assert difference.mean() < (3 if source.names[i] == "flower/whole.jpg" else 1.5), source.names[i]


@pytest.mark.ffcv
def test_validation_through_ffcv_is_pillows_pixel_for_pixel(own_photos: DataConfig) -> None:
    loader = pytest.importorskip("ffcv.loader")
    path = write_split(own_photos, "val")
    batches = loader.Loader(str(path), 7, num_workers=1, order=loader.OrderOption.SEQUENTIAL, drop_last=False)
    pixels = np.concatenate([images.numpy().copy() for images, _ in batches])
    source = open_source(own_photos, "val")
    size = own_photos.image_size
    steps = [transforms.Resize(int(size / 0.9), transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    reference = [np.asarray(transforms.Compose(steps)(source.image(i))) for i in range(len(source))]
    assert np.array_equal(pixels, np.stack(reference))


def test_bytes_do_not_depend_on_workers(own_photos: DataConfig) -> None:
    contents = []
    for workers in (1, 2, 5):
        path = write_split(own_photos, "train", workers=workers, force=True)
        places = (path, files.sidecar_path(path), files.names_path(path))
        contents.append([place.read_bytes() for place in places])
    assert contents[0] == contents[1] == contents[2]


def test_what_is_there_is_left_alone(own_photos: DataConfig) -> None:
    path = write_split(own_photos, "val")
    before = path.stat().st_mtime_ns
    assert write_split(own_photos, "val") == path
    assert path.stat().st_mtime_ns == before
    write_split(own_photos, "val", force=True)
    assert path.stat().st_mtime_ns > before


def test_unreadable_images_are_listed_and_fail(own_photos: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(own_photos.root) / "train"
    whole = (folder / "sky" / "03.jpg").read_bytes()
    (folder / "sky" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "roof" / "00.jpg").write_bytes(b"")
    (folder / "roof" / "link.jpg").symlink_to("nowhere.jpg")
    bad = ["roof/00.jpg", "roof/link.jpg", "sky/03.jpg"]
    with pytest.raises(DataError) as raised:
        write_split(own_photos, "train")
    told = capsys.readouterr()
    assert told.out == ""
    for name in bad:
        assert name in str(raised.value)
        assert f"The image {name} cannot be read" in told.err
    assert "--skip-unreadable" in str(raised.value)
    assert not left(own_photos)

    path = write_split(own_photos, "train", skip_unreadable=True)
    sidecar = files.check(path, own_photos, "train")
    source = open_source(own_photos, "train")
    assert sidecar.skipped == bad
    assert files.image_names(path) == [name for name in source.names if name not in bad]
    assert [label for *_, label in stored(path)] == [
        label for name, label in zip(source.names, source.labels, strict=True) if name not in bad
    ]
    assert sum(sidecar.class_counts) == sidecar.count == len(source) - 3


def test_a_class_without_readable_images_fails(own_photos: DataConfig) -> None:
    for image in (Path(own_photos.root) / "val" / "sky").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="No readable val image is left of sky"):
        write_split(own_photos, "val", skip_unreadable=True)
    assert not left(own_photos)


def test_a_full_disk_is_a_sentence(own_photos: DataConfig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DataError, match=r"There is no space left for .*train_max500_q90"):
            write_split(own_photos, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not left(own_photos)


def test_a_disk_without_room_is_a_sentence_at_once(own_photos: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 18 * 3 * 64**2
    usage = shutil.disk_usage(own_photos.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed // 2))
    with pytest.raises(DataError, match=r"val_64_0\.9_bicubic\.beton needs .* are free; make room, or set data\.root"):
        write_split(own_photos, "val")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    write_split(own_photos, "val")


def left(config: DataConfig) -> list[str]:
    """What lies in the folder of .beton files, but for locks."""
    return sorted(path.name for path in (Path(config.root) / "beton").iterdir() if path.suffix != ".lock")


def prepare_slowly(config: DataConfig, written, go) -> None:
    """Prepare when all are at `go`; each file takes a while and is counted."""
    write_images = writer._write_images

    def slow(*arguments):
        with written.get_lock():
            written.value += 1
        time.sleep(0.5)
        return write_images(*arguments)

    writer._write_images = slow
    go.wait()
    prepare(config)


def test_first_runs_at_once_write_each_file_once(own_photos: DataConfig) -> None:
    config = replace(own_photos, write_if_missing=True)
    written, go = FRESH.Value("i", 0), FRESH.Barrier(3, timeout=60)
    processes = [FRESH.Process(target=prepare_slowly, args=(config, written, go)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert written.value == 2
    assert {split: files.check(files.beton(config, split), config, split).count for split in ("train", "val")} == {
        "train": 39,
        "val": 18,
    }


def test_what_takes_long_is_said(
    own_photos: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside of a terminal; the clock of the writer jumps by ten seconds at each look."""
    path = files.beton(own_photos, "val")
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=itertools.count(0, 10).__next__))
    monkeypatch.setattr(disk, "PATIENCE", 0.1)
    path.parent.mkdir(exist_ok=True)
    with disk.locked(path):
        waiting = threading.Thread(target=write_split, args=(own_photos, "val"))
        waiting.start()
        said = ""
        while "waiting" not in said:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert said == f"waiting for another process, which writes {path}\n"
    waiting.join(timeout=60)
    assert files.check(path, own_photos, "val").count == 18
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"writing {path}: 18 images, once"
    assert lines[1:] == [f"writing val: {done} of 18 images" for done in (5, 11, 17)]
    write_split(own_photos, "val")
    assert capsys.readouterr().err == ""


def test_without_locks_writing_goes_on(own_photos: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = write_split(own_photos, "val")
    assert files.check(path, own_photos, "val").count == 18


def write_and_die(config: DataConfig, step: str) -> None:
    """Write the validation file anew; be killed after one step of publishing."""
    original = getattr(files, step)

    def last(*arguments) -> None:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(files, step, last)
    write_split(config, "val", force=True)


@pytest.mark.parametrize("step", ["save_names", "save_sidecar"])
@pytest.mark.parametrize("before", ["nothing", "another file"])
def test_a_writer_that_is_killed_leaves_nothing_that_is_taken_for_a_file(
    own_photos: DataConfig, step: str, before: str
) -> None:
    config = replace(own_photos, write_if_missing=True)
    if before == "another file":
        write_split(config, "val")
        (Path(config.root) / "val" / "sky" / "00.jpg").unlink()
    process = FRESH.Process(target=write_and_die, args=(config, step))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    path = files.beton(config, "val")
    assert not files.is_complete(path)
    count = inspect(config).val
    prepare(config)
    assert files.check(path, config, "val").count == len(files.image_names(path)) == len(stored(path)) == count
    assert not [name for name in left(config) if name.endswith(".part")]


@pytest.mark.parametrize("place", [files.sidecar_path, files.names_path])
def test_a_file_without_all_that_goes_with_it_is_written_again(own_photos: DataConfig, place) -> None:
    config = replace(own_photos, write_if_missing=True)
    prepare(config)
    path = files.train_beton(config)
    place(path).unlink()
    assert inspect(config).train == 39
    prepare(config)
    assert files.check(path, config, "train").count == len(files.image_names(path)) == 39


def test_a_folder_that_is_none_is_a_sentence(own_photos: DataConfig) -> None:
    (Path(own_photos.root) / "beton").write_text("in the way")
    with pytest.raises(DataError, match="could not be written"):
        write_split(own_photos, "train")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _put_folder_in_place_of_sidecar(path: Path) -> None:
    files.sidecar_path(path).unlink()
    files.sidecar_path(path).mkdir()


def _edit(path: Path, **changes: object) -> None:
    place = files.sidecar_path(path)
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "does not exist; make it: python scripts/prepare.py folder"),
        (_truncate, "it was cut short or replaced"),
        (lambda path: path.write_bytes(b""), "is not a .beton file"),
        (lambda path: path.write_bytes(b"PK\3\4" * 999), "is not a .beton file"),
        (lambda path: files.sidecar_path(path).unlink(), "has no sidecar val_64"),
        (lambda path: files.sidecar_path(path).write_text("{"), "is not a sidecar of this project"),
        (lambda path: files.sidecar_path(path).write_bytes(b"\xff\xfe\x00"), "is not a sidecar of this project"),
        (
            _put_folder_in_place_of_sidecar,
            r"json cannot be read \(Is a directory\); check its permissions, or make it: python",
        ),
        (lambda path: _edit(path, format=99), "has format 99, this version reads 1"),
        (lambda path: _edit(path, settings={"size": 64, "crop": 0.5}), "was written with .*0.5.*, the config says"),
    ],
    ids=[
        "missing",
        "cut",
        "empty",
        "zip",
        "no sidecar",
        "sidecar cut",
        "sidecar bytes",
        "sidecar folder",
        "format",
        "transform",
    ],
)
def test_check_names_what_is_wrong(own_photos: DataConfig, damage, sentence: str) -> None:
    path = write_split(own_photos, "val")
    assert files.check(path, own_photos, "val").count == 18
    damage(path)
    with pytest.raises(DataError, match=sentence):
        files.check(path, own_photos, "val")


def test_a_file_that_may_not_be_read_is_a_sentence(own_photos: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_split(own_photos, "val")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "fromfile", refuse)  # root may read everything
    with pytest.raises(
        DataError, match=r"bicubic\.beton cannot be read \(Permission denied\); check its permissions, or make it"
    ):
        files.check(path, own_photos, "val")


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"[]", mtime=0)[:-9] + b"\xff" * 9])
def test_damaged_names_are_a_sentence(own_photos: DataConfig, content: bytes) -> None:
    path = write_split(own_photos, "val")
    files.names_path(path).write_bytes(content)
    with pytest.raises(DataError, match=r"names\.json\.gz cannot be read"):
        files.image_names(path)


def test_a_missing_file_names_the_shortest_command_that_makes_it(own_photos: DataConfig) -> None:
    usual = replace(own_photos, image_size=224)
    command = f"python scripts/prepare.py folder --root {own_photos.root}"
    with pytest.raises(DataError, match=f"make it: {command}$"):
        files.check(files.train_beton(usual), usual, "train")
    write_split(own_photos, "train")
    with pytest.raises(DataError, match=f"make it: {command} data.image_size=64 --split val$"):
        files.check(files.beton(own_photos, "val"), own_photos, "val")


def test_another_transform_is_refused_with_the_command_that_makes_it(own_photos: DataConfig) -> None:
    write_split(own_photos, "val")
    other = replace(own_photos, eval_crop=0.875)
    with pytest.raises(DataError) as raised:
        files.check(files.beton(other, "val"), other, "val")
    assert "there is val_64_0.9_bicubic.beton, made with other settings" in str(raised.value)
    assert "data.image_size=64 data.eval_crop=0.875 data.eval_interpolation=bicubic" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eval_crop": 1.2}, "data.eval_crop is 1.2; set it"),
        ({"eval_interpolation": "area"}, "data.eval_interpolation is 'area'; set it to bilinear or bicubic"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"write": WriteConfig(mode="png")}, "data.write.mode is 'png'; set it to jpg or raw"),
        ({"write": WriteConfig(max_size=0)}, "data.write.max_size is 0"),
        ({"write": WriteConfig(quality=101)}, "data.write.quality is 101"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused_first(own_photos: DataConfig, change: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        inspect(replace(own_photos, **change))


def test_inspect_reads_sidecars_where_the_originals_are_gone(own_photos: DataConfig) -> None:
    from_originals = inspect(own_photos)
    for split in ("train", "val"):
        write_split(own_photos, split)
        shutil.rmtree(Path(own_photos.root) / split)
    assert inspect(own_photos) == from_originals
    with pytest.raises(DataError, match="no sub-folder train"):
        inspect(replace(own_photos, loader="torch"))
