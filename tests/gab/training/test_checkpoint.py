import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gab.errors import UserError
from gab.training import checkpoint
from gab.training.state import load_weights

CONTENT = {"model": {"w": torch.arange(2000.0)}, "step": 3, "config": {"a": [1, "x", None, True]}}


def test_round_trip_as_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write(path, CONTENT)
    for content in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert torch.equal(content["model"]["w"], CONTENT["model"]["w"])
        assert content["config"] == CONTENT["config"]


class Code:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=2))
    torch.save({"format": 1, "model": Code(tmp_path / "ran")}, tmp_path / "zipped.pt")
    for name in ("evil.pt", "zipped.pt"):
        with pytest.raises(UserError, match=rf"{name} is not a checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 3, 700, -100])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write(path, CONTENT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"last\.pt is not a checkpoint") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """torch.load would take it."""
    path = tmp_path / "last.pt"
    checkpoint.write(path, {"weights": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weights"].shape == (1000,)
    with pytest.raises(UserError, match="damaged.*another one is needed"):
        checkpoint.load(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt was not written by .*model=timm"):
        checkpoint.load(tmp_path / "foreign.pt")


def test_weights_of_another_model_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"another model \(missing: 1\.bias, 1\.weight\)"):
        load_weights(model, nn.Sequential(nn.Linear(3, 2)).state_dict())
    with pytest.raises(UserError, match=r"unknown: 2\.bias, 2\.weight"):
        load_weights(model, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)).state_dict())
    with pytest.raises(UserError, match=r"other shapes: 0\.weight \(2, 4\) for \(2, 3\)"):
        load_weights(model, nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)).state_dict())
