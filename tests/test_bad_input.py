"""What a user can get wrong: one sentence that names it and the remedy, exit code 2, and nothing left behind."""

import json
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import data
from conf.errors import sentences
from data.config import DataConfig, WriteConfig
from data.writer import write_split
from gab.errors import LostProcess, Stopped, UserError

ROOT = Path(__file__).parents[1]
SMALL = [  # were it not refused, it would end soon
    *("experiment=digits", "data.loader=torch", "run.workers=1", "run.device=cpu", "tracking.wandb=disabled"),
    *("train.epochs=1", "train.max_steps=1"),
]
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Refused:
    """`refused(script, *arguments)`: run it as `python script arguments` does; gives the sentence."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        err = capsys.readouterr().err
        assert ended.value.code == 2
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        assert sorted(tmp_path.iterdir()) == before
        return err.removeprefix("error: ").strip()

    return run


SETTINGS = {
    "model=vit_b16_gap": r"model=vit_b16_gap is unknown: did you mean .*vit_b16_gab",
    "data=imagnet": r"data=imagnet is unknown: did you mean imagenet or imagenette",
    "augment=dei": r"augment=dei is unknown: did you mean .*deit",
    "experiment=digit": r"experiment=digit is unknown: did you mean digits",
    "experiment=gab/pet_s16": r"experiment=gab/pet_s16 is unknown: did you mean gab/pets_s16 or",
    "optim.lr_rate=1": r"optim\.lr_rate is not a setting: did you mean optim\.lr",
    "optim.learning_rate=1": r"optim\.learning_rate is not a setting: did you mean optim\.lr\?",
    "batch_size=8": r"batch_size is not a setting: did you mean train\.batch_size",
    "experiment/gab=pets_s16_gab": r"experiment/gab is a folder: write experiment=gab/NAME",
    "model.depht=3": r"model\.depht is not a setting: did you mean model\.depth",
    "+model.dropout=0.1": r"model\.dropout is not a setting",
    "+extra=1": r"extra is not a setting",
    "model=swin_s": r"model\.depth is not a setting of this network: model\.network vit, .* have it",
    "train.sizes={0:16}": r"write '\+train\.sizes=\{0:128,100:192\}'",
    "train.epochs=many": r"train\.epochs=many is of the wrong type: give a whole number",
    "train.batch_size=1.5": r"train\.batch_size=1\.5 is of the wrong type: give a whole number",
    "optim.lr=fast": r"optim\.lr=fast is of the wrong type: give a number",
    "model.gab=perhaps": r"model\.gab=perhaps is of the wrong type: give true or false",
    "optim.betas=0.9": r"optim\.betas takes a list",
    "model.gab=true model.gaussian.sigma=wide": r"model\.gaussian\.sigma.*wide.*auto",
    "epochs": r"'epochs' is not an override: write epochs=VALUE",
    "evaluators=null": r"null or a number is no file of conf/: .*evaluators=\[\] for none",
    "augment=3": r"null or a number is no file of conf/: choose a file by its name",
    "train.precision=fp16": r"train\.precision=fp16 is unknown: choose one of auto, bf16, fp32",
    "run.compile=maybe": r"run\.compile=maybe is unknown",
    "optim.lr=0": r"optim\.lr=0: give a positive number",
    "optim.warmup_epochs=-3": r"optim\.warmup_epochs=-3: give a number of at least 0",
    "optim.weight_decay=-0.1": r"optim\.weight_decay=-0\.1: give a number of at least 0",
    "optim.momentum=7": r"optim\.momentum=7: give a number from 0 to below 1",
    "optim.betas=[0.9,1]": r"optim\.betas=\[0\.9, 1\.0\]: give two numbers",
    "train.ema_decay=3": r"train\.ema_decay=3: give a number from 0 to below 1",
    "optim.decay=paper": r"optim\.decay=paper is unknown: choose one of ours, released",
    "run.device=tpu": r"run\.device=tpu is unknown: choose one of auto, cuda, cpu",
    "train.sync_batchnorm=true run.processes=2": r"train\.sync_batchnorm=true needs GPUs",
    "run.processes=two": r"run\.processes=two: give a number of processes, or auto",
    "train.epochs=0": r"train\.epochs=0: give a number of at least 1",
    "run.log_every=0": r"run\.log_every=0: give a number of at least 1",
    "run.micro_batch=0": r"run\.micro_batch=0: give a number of at least 1",
    "run.eval_batch=-1": r"run\.eval_batch=-1: give a number of at least 1",
    "augment.mixing_group=0": r"augment\.mixing_group=0: give a number of at least 1",
    "tracking.wandb=yes": r"tracking\.wandb.*(yes|True).*online.*offline.*disabled",
    "model.num_heads=5": r"embed_dim.*96.*num_heads.*5|num_heads.*5.*embed_dim.*96",
    "model.patch_size=7": r"patch_size.*7",
    "data.loader=dali": r"data\.loader",
    "data.reader=lmdb": r"data\.reader",
    "data.crop.interpolation=nearest": r"data\.crop\.interpolation",
    "train.sizes=5": r"write '\+train\.sizes=\{0:128,100:192\}'",
    "+train.sizes=5": r"write '\+train\.sizes=\{0:128,100:192\}'",
    "run.processes=null": r"run\.processes=null: this setting cannot be without a value",
    "seed=-1": r"seed=-1: give a whole number from 0 to 2\^63 - 1",
    "data.split_seed=99999999999999999999": r"data\.split_seed is 9+; set a whole number",
    "data.mean=[0.5]": r"data\.mean=\[0\.5\]: give three numbers",
    "data.std=[1,0,1]": r"data\.std=\[1\.0, 0\.0, 1\.0\]: give positive numbers",
    "optim.clip_grad=-1": r"optim\.clip_grad=-1: give a positive number",
    "optim.lr_batch=-32": r"optim\.lr_batch=-32: give a number of at least 1",
    "optim.gaussian_lr_scale=-1": r"optim\.gaussian_lr_scale=-1: give a number of at least 0",
    "optim.eps=nan": r"optim\.eps=nan: give a number of at least 0",
    "checkpoint.every_minutes=nan": r"checkpoint\.every_minutes=nan: give a positive number",
    "run.dry=true run.images_per_second=0": r"run\.images_per_second=0: give a positive number",
    "train.batch_size=4096": r"1,437 training images of data=digits do not fill one batch: lower train\.batch_size",
}  # fmt: skip


@pytest.mark.parametrize("override", SETTINGS)
def test_settings(override: str, refused: Refused) -> None:
    assert re.search(SETTINGS[override], refused("train.py", *SMALL, *override.split()))


BATCHES = {
    "train.batch_size=33 run.processes=2": r"train\.batch_size=33 does not divide into 2 processes: .*batch_size=32",
    "train.batch_size=32 run.micro_batch=12": r"run\.micro_batch=12 does not divide the 32 images.*micro_batch=8",
    "train.batch_size=36 augment=gab": r"augment\.mixing_group=8 does not divide the 36 images",
    "train.batch_size=32 augment=gab run.micro_batch=4": r"augment\.mixing_group=8 does not divide run\.micro_batch=4",
}  # fmt: skip


@pytest.mark.parametrize("overrides", BATCHES)
def test_batches(overrides: str, refused: Refused) -> None:
    assert re.search(BATCHES[overrides], refused("train.py", *SMALL, *overrides.split()))


def test_unknown_timm_model(refused: Refused) -> None:
    said = refused("train.py", "model=timm", "model.name=vit_relpos_smal_patch16_224", "data=digits",
                   "data.loader=torch", "train.batch_size=32")  # fmt: skip
    assert "vit_relpos_smal_patch16_224" in said
    assert "did you mean vit_relpos_small_patch16_224" in said
    assert "model.name must be given" in refused("train.py", "model=timm", "data=digits")


TAUGHT = "model.class_token=true model.pool=token model.distillation_token=true distillation.teacher="
WEIGHTS = {
    "init.source=runs/nothing/last.pt": r"runs/nothing/last\.pt cannot be read \(No such file",
    "init.source=resnet_18": r"no model named 'resnet_18'; did you mean resnet18",
    f"{TAUGHT}regnety_16": r"no model named 'regnety_16'; did you mean regnety_160",
    f"{TAUGHT}regnety_16 distillation.weights=x.pth": r"no model named 'regnety_16'; did you mean regnety_160",
    f"{TAUGHT}resnet18 distillation.weights=x.pth": r"x\.pth cannot be read \(No such file",
    "model.num_heads=5": r"num_heads",
}


@pytest.mark.parametrize("overrides", WEIGHTS)
def test_what_the_network_lacks_is_said_before_data_is_written(
    overrides: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "prepare", lambda config: pytest.fail("would write the data set"))
    assert re.search(WEIGHTS[overrides], refused("train.py", *SMALL, *overrides.split()))


def test_cuda_where_there_is_none(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused("train.py", *SMALL, "run.device=cuda")
    assert said.startswith("run.device=cuda, but PyTorch sees no CUDA device here: use run.device=auto")


def test_no_place_for_the_run(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused("train.py", *SMALL, "run.dir=file", "run.name=run")
    assert re.search(r"file/run cannot be written \(Not a directory\).*run\.dir", said)


# -- folders and files of images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of crops from two photographs, as JPEG files and as .beton."""
    root = tmp_path_factory.mktemp("photos")
    for name, pixels in zip(("china", "flower"), load_sample_images().images):
        for split, count in (("train", 4), ("val", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                part = Image.fromarray(pixels).crop((40 * i, 30 * i, 40 * i + 90, 30 * i + 70))
                part.save(root / split / name / f"{i}.jpg")
    config = DataConfig(name="folder", root=str(root), image_size=32, write=WriteConfig())
    for split in ("train", "val"):
        write_split(config, split)
    return root


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos"


def images(folder: Path, loader: str = "ffcv") -> list[str]:
    where = [f"data.root={folder}", f"data.loader={loader}"]
    return [*SMALL, "data=folder", "data.image_size=32", "train.batch_size=4", *where]


def test_missing_and_empty_folders(refused: Refused, tmp_path: Path) -> None:
    assert re.search(r"nowhere.*data\.root", refused("train.py", *images(tmp_path / "nowhere")))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    assert re.search(r"empty/train is empty", refused("train.py", *images(tmp_path / "empty")))


def test_empty_class_and_class_missing_in_validation(refused: Refused, folder: Path) -> None:
    shutil.rmtree(folder / "val" / "flower")
    assert "Validation has no images of class flower" in refused("train.py", *images(folder, "torch"))
    (folder / "val" / "flower").mkdir()
    assert re.search(r"val/flower has no images", refused("train.py", *images(folder, "torch")))


def test_files_not_yet_written(refused: Refused, folder: Path) -> None:
    shutil.rmtree(folder / "beton")
    pytest.importorskip("ffcv")
    said = refused("train.py", *images(folder))
    assert "train_max500_q90.beton does not exist" in said
    assert "python scripts/prepare.py folder" in said


def spoil(path: Path, how: str) -> None:
    content, sidecar = path.read_bytes(), path.with_name(path.name + ".json")
    if how == "truncated":
        path.write_bytes(content[:-1000])
    elif how == "not a beton file":
        path.write_bytes(b"\xff\xd8 a JPEG, say" + content[14:])
    elif how == "of another version of the format":
        path.write_bytes(b"\x09" + content[1:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "of another transform":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"settings": {"size": 64}}))
    elif how == "without sidecar":
        sidecar.unlink()


@pytest.mark.parametrize("split", ["train_max500_q90", "val_32_0.9_bicubic"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "cut short"),
        ("not a beton file", "is not a .beton file"),
        ("of another version of the format", "is not a .beton file"),
        ("empty", "is not a .beton file"),
        ("of another transform", "was written with"),
        ("without sidecar", "has no sidecar"),
    ],
)
def test_spoilt_files(how: str, said: str, split: str, refused: Refused, folder: Path) -> None:
    spoil(folder / "beton" / f"{split}.beton", how)
    sentence = refused("train.py", *images(folder))
    assert f"{split}.beton" in sentence
    assert said in sentence
    assert "prepare.py" in sentence


def test_no_file_of_this_transform(refused: Refused, folder: Path) -> None:
    sentence = refused("train.py", *images(folder), "data.eval_crop=0.8")
    assert "val_32_0.8_bicubic.beton does not exist (there is val_32_0.9_bicubic.beton" in sentence
    assert "data.eval_crop=0.8" in sentence


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("trained"), "train.max_steps=1", "train.epochs=1", "train.ema_decay=null")


def test_checkpoint_of_another_model(refused: Refused, trained: Path, tmp_path: Path) -> None:
    """The file was put into the folder of a run of another depth."""
    (tmp_path / "runs" / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(trained / "checkpoints" / "last.pt", tmp_path / "runs" / "run" / "checkpoints")
    said = refused("train.py", *SMALL, "run.name=run")
    assert re.search(r"last\.pt is of a run with another config \(.*model\.depth: 2 -> 4.*take another run\.name", said)


EVALUATIONS = {
    "checkpoint=none.pt": r"there is no checkpoint none\.pt",
    "checkpoint=LAST eval.weights=ema": r"holds no averaged weights: take eval\.weights=raw",
    "checkpoint=LAST experiment=digits": r"experiment is not chosen in this command: leave it out; eval\.py takes",
    "checkpoint=LAST eval.weights=best": r"eval\.weights=best is unknown: choose one of raw, ema, both",
    "checkpoint=LAST eval.precision=fp8": r"eval\.precision=fp8 is unknown",
    "checkpoint=LAST eval.splitt=val": r"eval\.splitt is not a setting: did you mean eval\.split",
    "checkpoint=LAST model=vit_s16": r"give either checkpoint=FILE, or model=timm",
    "": r"give either checkpoint=FILE, or model=timm",
    "model=vit_s16 data=digits data.loader=torch": r"only networks of timm have published weights: give checkpoint=",
    "model=timm model.name=vit_relpos_small_patch16_224": r"add data=NAME",
    "model=timm model.name=vit_relpos_smal data=digits data.loader=torch": r"vit_relpos_small_patch16_224",
    "checkpoint=LAST data=PHOTOS": r"last\.pt has 10 classes \(0, 1, 2 …\), but data=folder has 2",
}


@pytest.mark.parametrize("overrides", EVALUATIONS)
def test_evaluations(overrides: str, refused: Refused, trained: Path, photos: Path) -> None:
    filled = overrides.replace("LAST", str(trained / "checkpoints" / "last.pt"))
    filled = filled.replace("data=PHOTOS", f"data=folder data.loader=torch data.image_size=32 data.root={photos}")
    assert re.search(EVALUATIONS[overrides], refused("eval.py", *filled.split()))


# -- the entry points as processes ------------------------------------------------------------------------------------


def test_from_a_shell(command: Callable, tmp_path: Path) -> None:
    done = command("train.py", *SMALL, "optim.lrr=1")
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"error: optim\.lrr is not a setting: [^\n]+\n", done.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_in_a_child_process(command: Callable, tmp_path: Path) -> None:
    """What only the processes of the run find out is said once, too."""
    done = command("train.py", *SMALL, "run.processes=2", "model.num_heads=5")
    assert done.code == 2
    assert re.fullmatch(r"error: [^\n]*num_heads[^\n]+\n", done.err)
    assert not list(tmp_path.iterdir())


ENDS = [
    (UserError("lower optim.lr"), 2, "error: lower optim.lr\n"),
    (LostProcess("process 1 was killed"), 3, "error: process 1 was killed\n"),
    (
        Stopped(signal.SIGUSR1, "at step 1,204, which is saved"),
        75,
        "stopped by SIGUSR1 (the job's time is nearly up) at step 1,204, which is saved: the same command goes on\n",
    ),
]


@pytest.mark.parametrize(("error", "code", "sentence"), ENDS, ids=["user", "lost", "stopped"])
def test_every_end_has_its_sentence_and_code(error: Exception, code: int, sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended, sentences():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (code, sentence)


def test_ctrl_c_is_a_sentence(capsys) -> None:
    with pytest.raises(SystemExit) as stopped, sentences():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nstopped; a training run goes on from its last checkpoint by the same command\n"
