"""Fine-tuning and other ways to train, as a user asks for them on the command line."""

import csv
import json
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import timm
import torch
from torch._dynamo.utils import counters

import eval as evaluation
import train
from conf.checks import check, fill_in
from conf.schema import typed
from gab.errors import UserError
from gab.evaluators import base
from scripts.export import export

Run = Callable[..., Path]
SHORT = ("train.max_steps=3", "run.eval_batch=100", "train.eval_images=100")
TWO_HEADS = ("model.class_token=true", "model.pool=token", "model.distillation_token=true")


@pytest.fixture(autouse=True)
def figures_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.figures, "draw", lambda *_: [])


@pytest.fixture(scope="module")
def first(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that others begin from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.figures, "draw", lambda *_: [])
        return tiny_run(tmp_path_factory.mktemp("first"), *SHORT)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


def load(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


# -- where the weights begin ------------------------------------------------------------------------------------------


def test_two_arms_begin_alike(first: Path, tiny_run: Run, rows, tmp_path: Path, capsys) -> None:
    source = f"init.source={first}/checkpoints/last.pt"
    starts = []
    for gab in ("true", "false"):
        how = (*SHORT, source, "init.fresh=[rel_pos]", f"model.gab={gab}", "train.epochs=1")
        run = tiny_run(tmp_path / gab, *how)
        starts += rows(run, "start")
    with_gab, without = starts
    assert without["weights"].items() < with_gab["weights"].items()
    assert without["origins"] == with_gab["origins"] == load(run)["origins"]
    assert "anew rel_pos (8 tensors), gaussian (4 tensors)" in with_gab["init"]
    assert without["init"] in capsys.readouterr().err


def test_a_run_that_goes_on_does_not_need_its_source(first: Path, tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """Its checkpoint is whole. Where another file is named, that must hold the same weights."""
    source, other, moved = (tmp_path / f"{name}.pt" for name in ("source", "other", "moved"))
    shutil.copy(first / "checkpoints" / "last.pt", source)
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(2):  # begins it, then goes on without the file
            with pytest.raises(KeyboardInterrupt):
                tiny_run(tmp_path, *SHORT, f"init.source={source}")
            source.unlink(missing_ok=True)
    origins = load(tmp_path / "run")["origins"]
    assert origins.keys() == {"init"}
    content = load(first)
    content["model"]["norm.bias" if "norm.bias" in content["model"] else "fc_norm.bias"] += 1
    torch.save(content, other)
    with pytest.raises(
        UserError, match=r"weights that it began with .* \(fingerprints init: \w+ -> \w+\): put the old"
    ):
        tiny_run(tmp_path, *SHORT, f"init.source={other}")
    with pytest.raises(UserError, match=r"another config \(init\.source: .* -> None\)"):
        tiny_run(tmp_path, *SHORT)
    shutil.copy(first / "checkpoints" / "last.pt", moved)
    ended = load(tiny_run(tmp_path, *SHORT, f"init.source={moved}"))
    assert ended["epochs"] == 2
    assert ended["origins"] == origins


# -- a teacher --------------------------------------------------------------------------------------------------------


def test_a_teacher_is_no_part_of_the_checkpoint(teacher: Path, tiny_run: Run, rows, tmp_path: Path, capsys) -> None:
    how = (*SHORT, *TWO_HEADS, "train.epochs=1")
    taught = tiny_run(tmp_path / "taught", *how, "distillation.teacher=test_resnet", f"distillation.weights={teacher}")
    assert "teacher:    test_resnet, weights" in capsys.readouterr().err
    alone = tiny_run(tmp_path / "alone", *how)
    content = load(taught)
    assert content["model"].keys() == load(alone)["model"].keys()
    assert content["origins"].keys() == {"teacher"}
    assert rows(taught, "train")[0]["loss"] != rows(alone, "train")[0]["loss"]
    [found] = rows(taught, "eval")
    assert 0 <= found["top1"] <= 100


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(tiny_run: Run, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(UserError, match="test_resnet has 7 classes, the data set has 10"):
        tiny_run(
            tmp_path, *SHORT, *TWO_HEADS, "distillation.teacher=test_resnet",
            f"distillation.weights={tmp_path}/teacher.pth",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_images_grow(tiny_run: Run, rows, config, tmp_path: Path) -> None:
    """Evaluated at the size of the data set all along, also by eval.py and from a checkpoint of the first phase."""
    sizes = ("+train.sizes={0:16,1:24}", "model.position=learnable", "model.gab=true", "checkpoint.keep=9")
    run = tiny_run(tmp_path, *SHORT, *sizes, "model.gaussian.frozen=true", "train.eval_images=null")
    early, late = load(run, "step_00000003"), load(run)
    assert (early["image_size"], late["image_size"]) == (16, 24)
    assert early["model"]["pos_embed"].shape[1] == 4
    assert late["model"]["pos_embed"].shape[1] == 9
    sigma = [row["sigma"][0] for row in rows(run, "train")]
    assert sigma[3:] == pytest.approx([1.5 * sigma[0]] * 3)  # patches, with the grid
    measured = {row["epoch"]: row["top1"] for row in rows(run, "eval")}
    for name, epoch in (("step_00000003", 1), ("last", 2)):
        checkpoint = f"checkpoint={run}/checkpoints/{name}.pt"
        settings = (checkpoint, "eval.weights=raw", f"eval.out={tmp_path / name}", "run.device=cpu", "run.workers=1")
        evaluation.run(config(*settings, name="eval"))
        found = json.loads((tmp_path / name / "scores.json").read_text())["scores"]["raw"]
        assert found["top1"] == pytest.approx(measured[epoch])
    export(run, "raw", tmp_path / "export", folded=False, onnx=False)
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    assert model.pos_embed.shape[1] == 16  # at 32 px


@pytest.mark.slow
def test_two_processes_grow_as_one(tiny_run: Run, rows, tmp_path: Path) -> None:
    """Another DDP takes over at the switch; were the one before it still there, gradients would be added up twice."""
    losses = []
    for count in (1, 2):
        how = (*SHORT, "+train.sizes={0:16,1:32}", "model.rel_pos=table", f"run.processes={count}")
        losses.append([row["loss"] for row in rows(tiny_run(tmp_path / str(count), *how), "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_one_compilation_per_size(tiny_run: Run, tmp_path: Path, monkeypatch) -> None:
    """Beside that of the evaluation, which compiles once training has come to the size of the data set."""
    graphs: list[int] = []
    end_epoch = train.Trainer.end_epoch

    def count(self) -> None:
        graphs.append(counters["stats"]["unique_graphs"])
        end_epoch(self)

    monkeypatch.setattr(train.Trainer, "end_epoch", count)
    without_kernels = partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", without_kernels)
    how = (*SHORT, "+train.sizes={0:16,2:32}", "train.epochs=4", "run.compile=true", "model.rel_pos=table")
    tiny_run(tmp_path, *how, "run.eval_batch=40")  # the last one of an evaluation is smaller
    steps = [after - before for before, after in zip([0, *graphs], graphs, strict=False)]
    assert steps[1:] == [0, 1, 1]


# -- test images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["last", "best"])
def test_test_images_are_shown_once(which: str, tiny_run: Run, rows, config, tmp_path: Path, capsys) -> None:
    run = tiny_run(tmp_path, *SHORT, "data.holdout=0.2", f"train.test={which}")
    [tested], [end] = rows(run, "test"), rows(run, "end")
    assert rows(run)[-1] is not tested
    assert (tested["weights"], tested["images"]) == (which, 360)
    assert end["test_top1"] == tested["top1"]
    assert ("test_top1_ema" in end) == (which == "last")
    said = f"test images: top-1 {tested['top1']:.2f} %"
    assert said in capsys.readouterr().out
    tiny_run(tmp_path, *SHORT, "data.holdout=0.2", f"train.test={which}")
    assert said in capsys.readouterr().out  # of a run that is finished

    settings = (f"checkpoint={run}/checkpoints/{which}.pt", "eval.split=test", "eval.weights=raw", "run.device=cpu")
    evaluation.run(config(*settings, f"eval.out={tmp_path / 'out'}", "run.workers=1", name="eval"))
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["raw"]
    assert found["top1"] == pytest.approx(tested["top1"])
    with (run / "eval" / "scores.csv").open(newline="") as file:
        table = {(row["checkpoint"], row["weights"], row["split"]): row for row in csv.DictReader(file)}
    assert float(table[f"{which}.pt", "raw", "test"]["top1"]) == pytest.approx(tested["top1"], abs=1e-4)


def test_epochs_are_judged_at_one_precision(tiny_run: Run, rows, tmp_path: Path, monkeypatch) -> None:
    """The last one's float32 score is not compared with the others' in bfloat16; here float32 makes all right."""
    predict = base.predict

    def perfect_in_float32(*arguments, bf16: bool, **options):
        found = predict(*arguments, bf16=bf16, **options)
        return found if bf16 else found._replace(top5=found.label[:, None].repeat(5, axis=1))

    monkeypatch.setattr(base, "predict", perfect_in_float32)
    run = tiny_run(tmp_path, *SHORT, "train.precision=bf16", "optim.warmup_epochs=0", "optim.lr=1e-3")
    first, last = rows(run, "eval")
    assert (first["precision"], last["precision"]) == ("bf16", "fp32")
    assert last["top1"] == 100
    assert first["top1"] <= load(run)["best_score"] < 100


def test_without_test_images_nothing_is_said(first: Path, rows) -> None:
    assert not rows(first, "test")
    assert "test_top1" not in rows(first, "end")[0]


def test_without_test_images_no_weights_can_be_chosen_for_them(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data=digits has none .* set train\.test=last, data\.split=pooled or data\.hold"
    ):
        tiny_run(tmp_path, *SHORT, "train.test=best")
    assert not list(tmp_path.iterdir())


# -- what cannot be ---------------------------------------------------------------------------------------------------

REFUSED = {
    "data.loader=gpu run.device=cpu": r"on the GPU of run\.device=cuda: set data\.loader=ffcv with run\.device=cpu",
    "optim.name=adam": r"optim\.name=adam is unknown: choose one of adamw, sgd, lamb",
    "optim.lr_per=image": r"optim\.lr_per=image is unknown",
    "optim.cosine_from=end": r"optim\.cosine_from=end is unknown",
    "optim.layer_decay=0": r"optim\.layer_decay=0: give a number above 0",
    "optim.name=lamb train.skip_non_finite=3": r"only optim\.name=adamw can leave steps out",
    "train.loss=mse": r"train\.loss=mse is unknown",
    "train.loss=bce": r"takes no label smoothing: set augment\.label_smoothing=0",
    "train.test=first": r"train\.test=first is unknown",
    "init.fresh=[neck] init.source=x": r"init\.fresh=neck is unknown: choose one of head, rel_pos, position, gaussian",
    "init.fresh=[head]": "without a source",
    "init.weights=ema": r"init\.weights=ema is of the checkpoint init\.source: give that",
    "init.source=x init.weights=mean": r"init\.weights=mean is unknown",
    "init.source=x model.rel_pos_start=gaussian": r"would be lost .* set init\.fresh=\[rel_pos\]",
    "model=timm model.name=resnet18 model.pretrained=true init.source=x": "both give weights",
    "distillation.teacher=resnet18": r"needs a network with a distillation token",
    "distillation.weights=x": "without distillation.teacher",
    "distillation.kind=firm": r"distillation\.kind=firm is unknown: choose one of hard, soft",
    "distillation.alpha=2": r"distillation\.alpha=2: give a share",
    "distillation.temperature=0": r"temperature=0: give a positive number",
    "model=deit_t16_distilled data.image_size=192 distillation.teacher=deit_base_patch16_224": "works at 224 pixels",
    "distillation.alpha=0.3": r"alpha=0\.3 does nothing with distillation\.teacher=null: set distillation\.alpha=0\.5",
    "distillation.kind=soft": r"kind=soft does nothing with distillation\.teacher=null",
    "model=deit_t16_distilled distillation.teacher=resnet18 distillation.temperature=2": "does nothing .*kind=hard",
    "data.crop.kind=padded data.crop.scale=[0.6,1]": r"does nothing .*=padded: set data\.crop\.scale=\[0\.5,1\.0\]",
    "data=cifar10 data.crop.kind=padded data.crop.interpolation=bicubic": r"set data\.crop\.interpolation=random",
    "data.crop.padding=2": r"padding=2 does nothing with data\.crop\.kind=resized: set data\.crop\.padding=4",
    "augment=none augment.interpolation=bicubic": r"does nothing with augment\.randaugment\.layers=0",
    "optim.momentum=0.8": r"optim\.momentum=0\.8 does nothing with optim\.name=adamw: set optim\.momentum=0\.9",
    "optim.name=sgd optim.betas=[0.9,0.95]": r"optim\.betas=\[0\.9,0\.95\] does nothing with optim\.name=sgd",
    "+train.sizes={0:30}": r"Images of 30 x 30 do not divide into patches",
    "+train.sizes={99:32}": r"give \{epoch: pixels\}, epochs from 0 to 29",
    "+train.sizes={0:0}": r"give \{epoch: pixels\}",
    "+train.sizes={0:16} data.crop.size=40": r"set data\.crop\.size=null",
    "model=swin_t +train.sizes={0:192}": "has windows, whose size would change with the images'",
    "model=timm model.name=levit_128s +train.sizes={0:192}": "stays at the size that it is built for",
}


def test_what_the_file_of_a_data_set_sets_is_no_setting_of_the_user(config) -> None:
    """That of digits sets data.crop.scale."""
    cfg = config("experiment=digits", "data.crop.kind=padded")
    fill_in(cfg, "cpu")
    check(typed(cfg), 1)


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_be_is_refused(settings: str, config) -> None:
    base = () if "model=" in settings else ("experiment=digits", "augment=gab")
    cfg = config("data=digits", *base, *settings.split())
    fill_in(cfg, "cpu")
    with pytest.raises(UserError, match=REFUSED[settings]):
        check(typed(cfg), 1)
