"""The command that writes .beton files, on the config files that come with the project."""

import shlex
from pathlib import Path

import pytest

from data import files, inspect, splits
from data.readers import readers
from scripts.prepare import data_config, main

DATA_SETS = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAB_DATA", "/somewhere")
    data = data_config(name, None, [])
    assert data.name == name
    assert data.reader in readers()
    assert data.root == f"/somewhere/{name}"


def test_both_splits_are_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits", "--workers", "2", "--root", str(tmp_path)])
    out = capsys.readouterr().out
    assert "train_max500_raw.beton: 1,437 images of 10 classes, 0.02 GB" in out
    assert "val_32_1_bicubic.beton: 360 images of 10 classes" in out
    info = inspect(data_config("digits", str(tmp_path), []))
    assert (len(info.classes), info.train, info.val) == (10, 1437, 360)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digit"], "digits"),
        (["folder", "--root", "/nowhere/at/all"], "The data folder /nowhere/at/all does not exist"),
        (
            ["cars", "--root", "/nowhere"],
            "/nowhere does not exist; set --root=FOLDER, or GAB_DATA to the folder that h",
        ),
        (["cars", "--root", "/nowhere"], "or make it: /nowhere does not hold stanford_cars/ with cars_train/"),
        (["digits", "data.write.quality=0"], "data.write.quality is 0; set it to 1 to 100"),
        (["digits", "data.rot=x"], "data.root"),
        (["digits", "--workers", "0"], "give at least 1"),
        (["digits", "+data.write.qualty=80"], "data.write.qualty is not a setting"),
        (["digits", "--split", "test"], "no split 'test'; choose train or val, or make one by data.holdout=0.1"),
        (["imagenet", "--download"], "No command can fetch data=imagenet: put its files into"),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("GAB_DATA", str(tmp_path))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # as in a fresh process
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.rglob("*.beton*"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["digits"],
        ["digits", "data.name=numbers", "data.image_size=40"],
        ["digits", "data.write.mode=jpg"],  # the schema's own, but not that of digits
        ["cifar10", "data.reader=digits", "data.eval_crop=0.9"],
        ["digits", "data.holdout=0.2", "data.split_seed=3"],
        ["digits", "data.split=pooled"],
    ],
    ids=" ".join,
)
def test_the_command_that_an_error_names_makes_the_files(overrides: list[str], tmp_path: Path) -> None:
    name, *settings = overrides
    wanted = data_config(name, f"{tmp_path}/it's, here", settings)
    interpreter, script, *arguments = shlex.split(files.write_command(wanted, "train"))
    assert (interpreter, script) == ("python", "scripts/prepare.py")
    main(arguments)
    for split in splits(wanted):
        assert files.check(files.beton(wanted, split), wanted, split).reader == "digits"
