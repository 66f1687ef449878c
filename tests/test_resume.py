"""A run that is stopped anywhere and started again ends as one that was not, in every bit."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import data
import train
from gab.distributed import signals
from gab.errors import Stopped, UserError
from gab.training.checkpoint_store import CheckpointStore
from scripts.same_bits import differences

pytestmark = pytest.mark.usefixtures("figures_are_not_drawn")
Run = Callable[..., Path]
Rows = Callable[..., list[dict]]
STEPS = 7  # of an epoch; two epochs
# Rows, checkpoints and epochs end at different steps.
RUN = (
    *("model.gab=true", "model.join=lape", "model.position=learnable", "model.life=true"),
    f"train.max_steps={STEPS}",
    "run.log_every=3",
    "checkpoint.every_steps=2",
    "run.eval_batch=100",
)


@pytest.fixture(scope="module")
def whole(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    return tiny_run(tmp_path_factory.mktemp("whole"), *RUN)


def load(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def assert_same_run(found: Path, expected: Path) -> None:
    assert differences(found, expected) == []
    assert not list(found.rglob("*.part"))


# -- killed -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if by kill -9, as far as that goes within a process; scripts/torture.py kills for real."""


@pytest.mark.parametrize(("kind", "step", "goes_on_at"), [("train", 3, 2), ("train", 12, 10), ("end", 14, 14)])
def test_killed(kind: str, step: int, goes_on_at: int, whole, tiny_run, tmp_path, monkeypatch, capsys):
    """Within the first row, in mid-epoch after some, and between the last checkpoint and the last row."""
    write = train.Observer.write

    def kill(self, row_kind: str, **fields) -> None:
        if (row_kind, fields["step"]) == (kind, step):
            raise Killed
        write(self, row_kind, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(train.Observer, "write", kill)
        with pytest.raises(Killed):
            tiny_run(tmp_path, *RUN)
    capsys.readouterr()
    run = tiny_run(tmp_path, *RUN)
    assert f"continues the run at epoch {goes_on_at / STEPS:.4g}, step {goes_on_at}\n" in capsys.readouterr().err
    assert_same_run(run, whole)


# -- asked to stop ----------------------------------------------------------------------------------------------------


def ask_at(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Let a signal arrive before the n-th time that the trainer looks, for every n of `calls`: once a step or batch."""
    count = 0

    def asked() -> int:
        nonlocal count
        count += 1
        return signal.SIGUSR1 if count in calls else 0

    monkeypatch.setattr(signals, "asked", asked)


@pytest.mark.parametrize("look", [1, 3, STEPS, STEPS + 1])
def test_stopped(look: int, whole: Path, tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """After the first step, on a row, between the last step of an epoch and its evaluation, and within that."""
    with monkeypatch.context() as patch:
        ask_at(patch, {look})
        with pytest.raises(Stopped, match=f"at step {min(look, STEPS)} ") as stopped:
            tiny_run(tmp_path, *RUN)
        assert stopped.value.signal == signal.SIGUSR1
    assert load(tmp_path / "run")["step"] == min(look, STEPS)
    run = tiny_run(tmp_path, *RUN)
    assert_same_run(run, whole)


def test_stopped_again_and_again(whole: Path, tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """After one to eleven steps or batches of an evaluation, which is begun anew where it was not finished."""
    for start in range(1, 40):
        with monkeypatch.context() as patch:
            ask_at(patch, {1 + 5 * start % 11})
            try:
                run = tiny_run(tmp_path, *RUN, "checkpoint.every_steps=null")
                break
            except Stopped:
                continue
    assert start >= 4
    assert_same_run(run, whole)


@pytest.mark.parametrize(("setting", "steps"), [("every_minutes=1e-9", range(1, 4)), ("every_steps=2", (2,))])
def test_saved_in_mid_epoch(setting: str, steps, tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    saved: list[int] = []
    save = CheckpointStore.save

    def note(self, content: dict, **names: bool) -> None:
        saved.append(content["step"])
        save(self, content, **names)

    monkeypatch.setattr(CheckpointStore, "save", note)
    short = ("train.max_steps=3", "train.epochs=1", "checkpoint.every_minutes=null")
    tiny_run(tmp_path, *short, f"checkpoint.{setting}")
    assert sorted(set(saved)) == sorted({*steps, 3})


def test_resume_reads_no_batch_twice(tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """Going on at step 1,000,000 costs what it costs at step 10: the loader is asked for what is left, no more."""
    asked: list[tuple[int, int]] = []
    decode = data.batches.TrainBatches.epoch

    def epoch(self, number: int, start: int = 0):
        asked.append((number, start))
        for batch in decode(self, number, start):
            asked.append((number, start))
            yield batch

    monkeypatch.setattr(data.batches.TrainBatches, "epoch", epoch)
    with monkeypatch.context() as patch:
        ask_at(patch, {STEPS + 8 + 4})  # 8 batches of evaluation, 4 of them for the averaged weights
        with pytest.raises(Stopped, match="at step 11 "):
            tiny_run(tmp_path, *RUN)
    asked.clear()
    tiny_run(tmp_path, *RUN)
    assert set(asked) == {(1, 4)}
    assert len(asked) <= 1 + (STEPS - 4) + 1


def go_on_from(whole: Path, checkpoint: str, tiny_run: Run, folder: Path, *how: str) -> Path:
    """A second run that starts from a checkpoint in the middle of `whole`."""
    shutil.copytree(whole, folder / "run", ignore=shutil.ignore_patterns("lock*", "checkpoints", "predictions.npz"))
    (folder / "run" / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints" / checkpoint, folder / "run" / "checkpoints" / "last.pt")
    shutil.copy(whole / "checkpoints" / "best.pt", folder / "run" / "checkpoints")
    record = folder / "run" / "record.jsonl"  # without the last row, which says that the run is finished
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:-1]))
    return tiny_run(folder, *how)


@pytest.mark.slow
def test_several_processes_go_on_bit_for_bit(tiny_run: Run, tmp_path: Path, capfd) -> None:
    """Of three numbers the order of adding matters, and DDP chooses one that depends on what it has seen before.

    In ViTAE, each process has BatchNorm's statistics of its own until the end of an epoch; dropout is drawn anew for
    every step.
    """
    network = ("model=vitae_t", "model.patch_size=16", "model.num_heads=2", "model.groups=8", "model.prm_widths=[8,8]")
    how = (*RUN, *network, "data.image_size=32", "run.processes=3", "train.batch_size=24", "checkpoint.keep=99")
    whole = tiny_run(tmp_path / "whole", *how)
    assert "BatchNorm: statistics per process, over 8 images each" in capfd.readouterr().err
    assert_same_run(go_on_from(whole, "step_00000010.pt", tiny_run, tmp_path / "again", *how), whole)


TEACHER = ("distillation.teacher=test_resnet", "distillation.weights=teacher.pth", "model.distillation_token=true")
LAMB = ("optim.name=lamb", "optim.clip_grad=1.0", "train.loss=bce", "augment.label_smoothing=0")
LAYERS = ("optim.name=sgd", "optim.layer_decay=0.7", "optim.lr_per=epoch", "model.gaussian.frozen=true")
OPTIONS = {  # each with the step that it goes on from; in the first epoch, between the two and in the second
    "sgd by layers, a start as the Gaussian": (4, (*LAYERS, "model.rel_pos_start=gaussian")),
    "sizes, before they change": (6, ("+train.sizes={0:16,1:32}", "model.rel_pos=table")),
    "a teacher, and as sizes change": (7, (*TEACHER, "+train.sizes={0:16,1:32}", "model.position=learnable")),
    "lamb, and after sizes have changed": (10, (*LAMB, "+train.sizes={0:16,1:24}", "model.rel_pos=table")),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_goes_on_bit_for_bit(name: str, tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), "teacher.pth")
    step, options = OPTIONS[name]
    token = ("model.class_token=true", "model.pool=token", "train.eval_images=50", "checkpoint.keep=99")
    how = (*RUN, *token, "train.ema_decay=0.9", *options)
    whole = tiny_run(tmp_path / "whole", *how)
    assert_same_run(go_on_from(whole, f"step_{step:08d}.pt", tiny_run, tmp_path / "again", *how), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_goes_on_bit_for_bit(tiny_run: Run, tmp_path: Path) -> None:
    """In bf16 and compiled, where run.deterministic=true asks for it."""
    how = (*RUN, "checkpoint.keep=99", "run.device=cuda", "run.processes=1", "train.precision=bf16")
    how += ("run.compile=true", "run.deterministic=true")
    whole = tiny_run(tmp_path / "whole", *how)
    assert_same_run(go_on_from(whole, "step_00000002.pt", tiny_run, tmp_path / "again", *how), whole)


# -- what a start finds -----------------------------------------------------------------------------------------------


@pytest.fixture
def stopped_run(tiny_run: Run, tmp_path: Path, monkeypatch) -> Path:
    """A run that was stopped after five steps, with checkpoints of the steps 4 and 5."""
    with monkeypatch.context() as patch:
        ask_at(patch, {5})
        with pytest.raises(Stopped):
            tiny_run(tmp_path, *RUN)
    return tmp_path / "run"


def test_a_damaged_checkpoint_gives_way(stopped_run: Path, whole: Path, tiny_run: Run, capsys) -> None:
    folder = stopped_run / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "step_00000004.pt"]
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000])
    capsys.readouterr()
    run = tiny_run(stopped_run.parent, *RUN)
    err = capsys.readouterr().err
    assert re.search(r"last\.pt is not a checkpoint .*Going on from the one before it, step_00000004\.pt\.", err)
    assert "step 4\n" in err
    assert_same_run(run, whole)


def test_no_whole_checkpoint_is_an_error(stopped_run: Path, tiny_run: Run) -> None:
    """Rather than a silent start from the beginning."""
    for path in (stopped_run / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"step_00000004\.pt is not a checkpoint"):
        tiny_run(stopped_run.parent, *RUN)


def test_other_images_are_refused(stopped_run: Path, tiny_run: Run, monkeypatch) -> None:
    fingerprint = data.fingerprint
    monkeypatch.setattr(data, "fingerprint", lambda config: fingerprint(config) | {"train": "0123456789abcdef"})
    with pytest.raises(UserError, match=r"images are not those .*train: \w+ -> 0123456789abcdef\).*another run\.name"):
        tiny_run(stopped_run.parent, *RUN)


def test_another_config_is_refused(stopped_run: Path, tiny_run: Run) -> None:
    """Also where the folder's config.yaml is gone: the checkpoint knows its own."""
    (stopped_run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"last\.pt is of a run with another config \(seed: 0 -> 1\)"):
        tiny_run(stopped_run.parent, *RUN, "seed=1")


def test_as_many_threads_as_before(stopped_run: Path, tiny_run: Run, capsys) -> None:
    """A requeued job may get other cores; on a CPU the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        tiny_run(stopped_run.parent, *RUN)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert "changed since the last start" not in capsys.readouterr().err


def test_other_processes_go_on_to_rounding(stopped_run: Path, whole: Path, tiny_run: Run, rows: Rows, capfd) -> None:
    run = tiny_run(stopped_run.parent, *RUN, "run.processes=2")
    assert (
        "these changed since the last start: processes 1 -> 2; from here on the run equals an uninterrupted one only"
        in capfd.readouterr().err
    )
    ours, theirs = rows(run, "train"), rows(whole, "train")
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-5)
    assert [r.get("images_digest") for r in ours] == [r.get("images_digest") for r in theirs]
