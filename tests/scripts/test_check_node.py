"""What a node that cannot do its part says, with its name."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from data.config import DataConfig
from gab.errors import UserError
from scripts.slurm import check_node
from tests.conftest import TINY


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_node, "NODE", "node n7")


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """A data set whose files are there as far as this script looks: 1000 bytes each."""
    config = DataConfig(name="x", root=str(tmp_path / "root"), stage=str(tmp_path / "stage"))
    for split in ("train", "val"):
        path = check_node.files.beton(config, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        fields = dict.fromkeys(("reader", "settings", "classes", "class_counts", "count", "reencoded"), 0)
        other = {"split": split, "bytes": 1000, "sha256": split * 16, "skipped": [], "software": {}, "format": 1}
        check_node.files.sidecar_path(path).write_text(json.dumps(fields | other))
    return config


def free(monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(amount, 0, amount))


def test_a_good_node_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    check_node.main("train", TINY)
    assert capsys.readouterr().out.startswith("node n7: Python 3.")


@pytest.mark.parametrize("named", [[], ["data=folder", "data.root=here"]])
def test_of_an_evaluation_it_looks_at_data_that_is_named(named: list[str]) -> None:
    words = ["checkpoint=last.pt", "run.device=cpu", *named]
    if named:
        with pytest.raises(UserError, match="node n7 cannot read here"):
            check_node.main("eval", words)
    else:
        check_node.main("eval", words)


def test_gpus_that_pytorch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    check_node.check_gpus(3, "auto")
    with pytest.raises(
        UserError, match="node n7: SLURM gives the job 4 GPUs there, but PyTorch sees 3: .*--exclude=n7"
    ):
        check_node.check_gpus(4, "auto")


def test_gpus_without_a_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(UserError, match="but 1 processes: add --ntasks-per-node=4"):
        check_node.check_gpus(4, "auto")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    check_node.check_gpus(4, "auto")


def test_data_that_is_not_seen(data: DataConfig) -> None:
    check_node.check_data(data)
    shutil.rmtree(data.root)
    with pytest.raises(UserError, match=f"node n7 cannot read {data.root}"):
        check_node.check_data(data)
    data.write_if_missing = True
    check_node.check_data(data)


def test_room_for_a_staged_copy(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2000)
    check_node.check_stage(data)
    free(monkeypatch, 1999)
    with pytest.raises(UserError, match=r"node n7 has 0\.0 GB free in data\.stage="):
        check_node.check_stage(data)
    train = check_node.files.beton(data, "train")
    copy = Path(data.stage or "") / ("train" * 16)[:16] / train.name  # which another job has made
    copy.parent.mkdir(parents=True)
    copy.touch()
    check_node.check_stage(data)


def test_a_stage_that_cannot_be_made(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "stage").touch()
    with pytest.raises(UserError, match="node n7 cannot write to data.stage="):
        check_node.check_stage(data)
