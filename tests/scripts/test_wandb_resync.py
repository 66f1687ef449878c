from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import wandb_resync


def test_each_run_gets_a_sentence_and_a_failure_an_exit_code(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(mode, raising=False)
    folder = tiny_run(tmp_path, "train.max_steps=1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        wandb_resync.main([str(tmp_path / "nothing"), str(folder), "--mode", "offline"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err == (
        f"error: {tmp_path}/nothing is not the folder of a run (it has no config.yaml): give one like runs/NAME\n"
    )
    assert said.out.startswith(f"{folder}: wrote all ")
    wandb_resync.main([str(folder), "--mode", "offline"])
