"""Evaluate a checkpoint or a published model: `python eval.py checkpoint=runs/NAME/checkpoints/last.pt`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

import data
from conf.checks import check_evaluation
from conf.errors import refuse_unknown, sentences
from conf.schema import EvaluateConfig, data_from, model_from, plain, typed
from data.config import DataConfig
from gab.augment import normalize
from gab.config import ModelConfig, TimmConfig
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.errors import UserError
from gab.evaluators import Scores, predict, score, write_per_class
from gab.models import build, variant
from gab.training import checkpoint
from gab.training.state import load_weights


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    with sentences():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Refuse what cannot work, then evaluate in as many processes as the config wants."""
    refuse_unknown(plain(cfg))
    config: EvaluateConfig = typed(cfg)
    check_evaluation(config)
    if config.data is None:
        config.data = data_of(checkpoint.load(Path(str(config.checkpoint))))
    device = choose_device(config.run.device)
    launch(evaluate, (config,), count=count_processes(config.run.processes, device), device=device)


def data_of(stored: dict[str, Any]) -> DataConfig:
    """The data set that a checkpoint was trained on; a staged copy of it only where there is such a place."""
    config = data_from(stored["config"]["data"])
    if config.stage and not Path(config.stage).expanduser().is_dir():
        config.stage = None  # the disk of a job that is over
    return config


def evaluate(processes: Processes, config: EvaluateConfig) -> None:
    """What each process of the evaluation does."""
    assert config.data is not None
    if processes.first:
        data.prepare(config.data)
    processes.barrier()
    batches = data.open_eval(
        config.data,
        batch_size=config.run.eval_batch,
        split=config.eval.split,
        **loader_options(processes, config.run.workers),
    )
    name, models = networks(config, config.data, batches.classes)
    folder = Path(config.eval.out) if config.eval.out else default_folder(config, name)
    mean, std = (torch.tensor(v, device=processes.device) for v in (config.data.mean, config.data.std))

    def prepare(images: Tensor) -> Tensor:
        return normalize(images, mean, std)

    if processes.first:
        print(
            f"evaluating {name} on {batches.num_samples:,} images of {config.data.name}: {batches.describe()}",
            flush=True,
        )

    def between() -> None:
        processes.heartbeat.at("evaluating")

    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    rows = {}
    for weights, model in models.items():
        model.to(processes.device)
        shown = tqdm(batches, weights, len(batches), disable=not processes.first, mininterval=interval)
        bf16 = config.eval.precision == "bf16"
        predictions = predict(model, shown, prepare, processes, bf16=bf16, between=between)
        rows[weights] = score(predictions)
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            suffix = "" if weights == "raw" else f"_{weights}"
            predictions.save(folder / f"predictions{suffix}.npz", batches.names)
            write_per_class(predictions, batches.classes, folder / f"per_class{suffix}.csv")
    batches.close()
    if processes.first:
        report(config, name, rows, folder)


def networks(config: EvaluateConfig, data: DataConfig, classes: list[str]) -> tuple[str, dict[str, nn.Module]]:
    """The name, and the networks to evaluate by the kind of their weights.

    Raises:
        UserError: the network knows other classes than the data set, or there are no such weights.
    """
    if config.checkpoint is None:
        assert isinstance(config.model, TimmConfig)
        return variant(config.model), {"raw": published(config.model, data, classes)}
    stored = checkpoint.load(Path(config.checkpoint))
    if stored["classes"] != classes:
        raise UserError(
            f"{config.checkpoint} tells {len(stored['classes'])} classes apart ({', '.join(stored['classes'][:3])} …), "
            f"but data={data.name} has {len(classes)} ({', '.join(classes[:3])} …): evaluate it on data of its classes"
        )
    kinds = {"raw": "model", "ema": "ema"}
    wanted = [k for k in kinds if config.eval.weights in (k, "both") and stored[kinds[k]] is not None]
    if not wanted:
        raise UserError(f"{config.checkpoint} holds no averaged weights: take eval.weights=raw")
    trained = data_from(stored["config"]["data"])
    compare_transforms("it was trained with", {key: getattr(trained, key) for key in TRANSFORM}, data)
    model = model_from(stored["config"]["model"])
    return variant(model), {k: restore(model, stored, kinds[k], trained.image_size, data.image_size) for k in wanted}


def published(model: TimmConfig, data: DataConfig, classes: list[str]) -> nn.Module:
    """A network of timm's registry with its published weights."""
    if model.pretrained is None:
        model.pretrained = True
    network = build(model, image_size=data.image_size, num_classes=len(classes), seed=0)
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {}) if model.pretrained else {}
    if cfg.get("num_classes", len(classes)) != len(classes):
        raise UserError(
            f"the weights of {model.name} tell {cfg['num_classes']} classes apart, but data={data.name} has "
            f"{len(classes)}: evaluate them on data of their classes"
        )
    compare_transforms("timm evaluates it with", {key: cfg.get(name) for key, name in TRANSFORM.items()}, data)
    return network


TRANSFORM = {
    "mean": "mean",
    "std": "std",
    "eval_interpolation": "interpolation",
    "eval_crop": "crop_pct",
}  # timm's names


def compare_transforms(who: str, other: dict[str, Any], data: DataConfig) -> None:
    """Say which settings of the evaluation transform differ from what the weights are used to."""
    used = {key: getattr(data, key) for key in other}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in other.items()}
    differing = [f"data.{key}={plain[key]}" for key in plain if plain[key] is not None and plain[key] != used[key]]
    if differing:
        print(f"note: {who} {' '.join(differing)}")


def restore(config: ModelConfig, stored: dict[str, Any], weights: str, trained_size: int, image_size: int) -> nn.Module:
    """A network of the checkpoint, moved to `image_size` if it was trained at another."""
    if isinstance(config, TimmConfig):
        config.pretrained = False  # its weights are about to be replaced
    model = build(config, image_size=trained_size, num_classes=len(stored["classes"]), seed=0)
    load_weights(model, stored[weights])
    resize = getattr(model, "set_input_size", None)
    if image_size != trained_size and callable(resize):
        resize(image_size)
    elif image_size != trained_size and getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):
        raise UserError(f"this network works at {trained_size} pixels only: set data.image_size={trained_size}")
    return model


def default_folder(config: EvaluateConfig, name: str) -> Path:
    """`runs/NAME/eval/CHECKPOINT-DATA-SPLIT/`, or `runs/eval/MODEL-DATA-SPLIT/` for published weights."""
    assert config.data is not None
    what = f"{config.data.name}-{config.eval.split}-{config.data.image_size}"
    if config.checkpoint is None:
        return Path(config.run.dir) / "eval" / f"{name}-{what}"
    path = Path(config.checkpoint)
    return path.parent.parent / "eval" / f"{path.stem}-{what}"


def report(config: EvaluateConfig, name: str, rows: dict[str, Scores], folder: Path) -> None:
    """A table for people, the same as JSON for programs."""
    assert config.data is not None
    precision = config.eval.precision
    print(f"{name} on {config.data.name} ({config.eval.split}), {config.data.image_size} px, {precision}")
    print(f"{'weights':8} {'images':>8} {'top-1 %':>9} {'top-5 %':>9} {'log-loss':>9}")
    for weights, s in rows.items():
        print(f"{weights:8} {s.images:8,} {s.top1:9.3f} {s.top5:9.3f} {s.log_loss:9.5f}")
    content = {
        "model": name,
        "checkpoint": config.checkpoint,
        "data": dataclasses.asdict(config.data),
        "split": config.eval.split,
        "precision": precision,
        "scores": {weights: dataclasses.asdict(s) for weights, s in rows.items()},
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"predictions, per-class table and scores: {folder}")


if __name__ == "__main__":
    with sentences():
        main()
