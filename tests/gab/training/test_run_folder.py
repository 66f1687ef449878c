import copy
from pathlib import Path

import pytest
import yaml

from gab.errors import UserError
from gab.training.run_folder import check_folder, differences, make_folder, read_config, refuse_another, run_name

CONFIG = {
    "model": {"depth": 2, "kwargs": {}},
    "data": {"name": "digits", "root": "here", "stage": None, "write_if_missing": True, "image_size": 32},
    "optim": {"lr": 1e-3, "betas": [0.9, 0.999]},
    "seed": 0,
    "run": {"processes": "auto"},
    "checkpoint": {"every_epochs": 1},
    "tracking": {"wandb": None},
}
NEUTRAL = [("run", "processes", "2"), ("checkpoint", "every_epochs", 5), ("tracking", "wandb", "online"),
           ("data", "root", "there"), ("data", "stage", "fast"), ("data", "write_if_missing", False)]  # fmt: skip
ESSENTIAL = [("model", "depth", 3), ("data", "image_size", 64), ("optim", "lr", 2e-3), ("optim", "betas", [0.9, 0.99])]


def changed(section: str, key: str, value) -> dict:
    config = copy.deepcopy(CONFIG)
    config[section][key] = value
    return config


def test_name() -> None:
    name = run_name(CONFIG, "vit_gab")
    assert name == "vit_gab-digits-s0-9cf765df"
    assert name == run_name(dict(reversed(CONFIG.items())), "vit_gab")  # the order of keys has no meaning
    assert "=" not in name


@pytest.mark.parametrize(("section", "key", "value"), NEUTRAL)
def test_what_cannot_change_results_does_not_change_the_name(section: str, key: str, value) -> None:
    assert run_name(changed(section, key, value), "v") == run_name(CONFIG, "v")
    assert not differences(CONFIG, changed(section, key, value))


@pytest.mark.parametrize(("section", "key", "value"), ESSENTIAL)
def test_what_changes_results_changes_the_name(section: str, key: str, value) -> None:
    assert run_name(changed(section, key, value), "v") != run_name(CONFIG, "v")
    assert differences(CONFIG, changed(section, key, value)) == [f"{section}.{key}: {CONFIG[section][key]} -> {value}"]


def test_the_same_run_is_found_again(tmp_path: Path) -> None:
    folder, again = tmp_path / "run", changed("run", "processes", "2")
    check_folder(folder, CONFIG)
    assert not folder.exists()
    make_folder(folder, CONFIG)
    check_folder(folder, again)
    make_folder(folder, again)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == again


def test_another_config_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 -> 0\.002.*another run\.name"):
        check_folder(tmp_path / "run", changed("optim", "lr", 2e-3))


def test_no_place_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\).*run\.dir"):
        make_folder(tmp_path / "file" / "run", CONFIG)

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UserError, match=r"run cannot be written \(No space left on device\): free space"):
        make_folder(tmp_path / "run", CONFIG)


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB free, 1000000000\.00 GB needed.*run\.dir"):
        make_folder(tmp_path / "run", CONFIG, needed=10**18)


def test_spelling_of_numbers_is_no_difference() -> None:
    assert run_name(changed("optim", "lr", 1), "v") == run_name(changed("optim", "lr", 1.0), "v")


def test_weights_are_named_from_the_folder_of_runs_on_and_told_apart_by_their_fingerprints() -> None:
    def begun(source: str | None, runs: str) -> dict:
        return {**CONFIG, "init": {"source": source}, "run": {"dir": runs}}

    here, there = begun("runs/first/last.pt", "runs"), begun("/scratch/first/last.pt", "/scratch")
    assert run_name(here, "v") == run_name(there, "v")
    assert run_name(here, "v") != run_name(begun("runs/second/last.pt", "runs"), "v")
    assert run_name(begun("resnet18", "runs"), "v") == run_name(begun("resnet18", "/scratch"), "v")
    assert not differences(here, begun("copy.pt", "runs"))
    assert differences(here, begun(None, "runs")) == ["init.source: first/last.pt -> None"]
    assert differences(begun(None, "runs"), here) == ["init.source: None -> first/last.pt"]


def test_test_images_may_come_later() -> None:
    """As the folder `test` of a data set that is a folder per class."""
    content = {"config": CONFIG, "data": {"train": "1", "val": "2"}, "origins": {}}
    known = {"train": "1", "val": "2", "test": "3"}
    refuse_another(Path("last.pt"), content, container=CONFIG, data=known, origins={})
    content["data"]["test"] = "4"
    with pytest.raises(UserError, match=r"the images are not those .* \(fingerprints test: 4 -> 3\)"):
        refuse_another(Path("last.pt"), content, container=CONFIG, data=known, origins={})


@pytest.mark.parametrize("text", ["model: [half", "- a\n- list", "3", "a: \0"])
def test_a_damaged_config_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml (cannot be read|is not the config of a run).*: restore it"):
        read_config(tmp_path / "config.yaml")
