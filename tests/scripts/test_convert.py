import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from scripts import convert
from tests.golden_noise import fill, images, load


def save(path: Path, **beside: Any) -> Path:
    """What a script of DeiT's kind saves: weights under `model`, among other things."""
    weights = fill(load("life_deit_tiny_patch4_32_ms")["state_dict_keys"])
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}, "epoch": 299, **beside}, path)
    return path


def refusal(capsys: pytest.CaptureFixture, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        convert.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


def test_the_printed_call_loads_the_file_and_gives_the_official_output(tmp_path: Path, capsys: pytest.CaptureFixture):
    official = save(tmp_path / "official.pth", args=argparse.Namespace(lr=5e-4, model="deit"), optimizer={"state": {}})
    out = tmp_path / "new" / "weights.safetensors"
    convert.main([str(official), "--model", "deit_tiny_patch16_life_224", "--out", str(out)])
    account, call = capsys.readouterr().out.splitlines()
    assert account == "200 tensors with 5,453,860 values"
    assert call == (
        "import gab, timm; timm.create_model('deit_tiny_patch16_life_224', num_classes=100, patch_size=4, img_size=32, "
        f"checkpoint_path={str(out)!r})"
    )
    model = eval(call.partition("; ")[2], {"timm": timm}).eval()
    golden = load("life_deit_tiny_patch4_32_ms")
    with torch.no_grad():
        assert (model(images(32)) - torch.tensor(golden["logits"])).abs().max() < 2e-5
    assert out.stat().st_mode == official.stat().st_mode  # by the umask, and not for its owner alone
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert {key: told[key] for key in ("model", "source")} == {
        "model": "deit_tiny_patch16_life_224",
        "source": "official.pth",
    }
    assert json.loads(told["options"]) == {"num_classes": 100, "patch_size": 4, "img_size": 32}


def test_options_and_what_was_renamed(tmp_path: Path, capsys: pytest.CaptureFixture):
    names = load("lape_deit_tiny_learnable_LaPE")["state_dict_keys"]
    torch.save(fill(names), tmp_path / "official.pth")
    out = tmp_path / "w.safetensors"
    options = ["--option", "join=lape_sharing", "drop_path_rate=0.1", "--option", "num_classes=1000"]
    convert.main([str(tmp_path / "official.pth"), "--model", "deit_tiny_patch16_lape_224", "--out", str(out), *options])
    account, call = capsys.readouterr().out.splitlines()
    assert account == (
        "176 tensors with 5,722,024 values; 24 renamed (blocks.0.pe_norm.weight -> join.norms.0.weight, "
        "blocks.0.pe_norm.bias -> join.norms.0.bias, blocks.1.pe_norm.weight -> join.norms.1.weight, ...)"
    )
    assert "join='lape_sharing', drop_path_rate=0.1, num_classes=1000, checkpoint_path=" in call


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    trace = tmp_path / "trace"
    official = save(tmp_path / "official.pth", args=Malice(f"touch {trace}"))
    said = refusal(capsys, official, "--model", "deit_tiny_patch4_life_32", "--out", tmp_path / "w.safetensors")
    assert said == (
        f"error: {official} is refused: it is damaged, or holds more than tensors, numbers and settings, and would run "
        "code when loaded. Save its state_dict alone where you trust it.\n"
    )
    assert not trace.exists()
    assert not (tmp_path / "w.safetensors").exists()


def test_a_whole_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    assert "is refused" in refusal(capsys, tmp_path / "model.pth", "--model", "vitae_tiny")


def test_no_namespace_is_allowed_outside(tmp_path: Path):
    """Reading one file does not open the door for the rest of the process."""
    official = save(tmp_path / "official.pth", args=argparse.Namespace(lr=1))
    assert convert.read(official)["args"].lr == 1
    with pytest.raises(Exception, match="argparse.Namespace"):
        torch.load(official, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_files_that_are_none(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "junk.pth").write_bytes(content)
    assert "junk.pth is refused: it is damaged" in refusal(capsys, tmp_path / "junk.pth", "--model", "vitae_tiny")


def test_what_else_a_user_can_get_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    official = save(tmp_path / "official.pth")
    name = "deit_tiny_patch4_life_32"
    absent = refusal(capsys, tmp_path / "absent.pth", "--model", name)
    assert absent == f"error: {tmp_path}/absent.pth cannot be read (No such file or directory).\n"
    assert "must end in .safetensors" in refusal(capsys, official, "--model", name, "--out", tmp_path / "weights.pt")
    assert "--option takes KEY=VALUE, not 'life'" in refusal(capsys, official, "--model", name, "--option", "life")
    assert "did you mean deit_tiny_patch4_life_32" in refusal(capsys, official, "--model", "deit_tiny_patch4_lif_32")
    assert "These weights do not fit" in refusal(
        capsys, official, "--model", "vitae_tiny", "--out", tmp_path / "w.safetensors"
    )
    (tmp_path / "file").touch()
    said = refusal(capsys, official, "--model", name, "--out", tmp_path / "file" / "w.safetensors")
    assert said.startswith(f"error: cannot write {tmp_path}/file/w.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    said = refusal(capsys, official, "--model", name, "--out", tmp_path / "folder.safetensors")
    assert said.startswith(f"error: cannot write {tmp_path}/folder.safetensors")
