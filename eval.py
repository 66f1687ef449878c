"""Evaluate a checkpoint or a published model: `python eval.py checkpoint=runs/NAME/checkpoints/last.pt`."""

import dataclasses
import json
import sys
from collections.abc import Iterable
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
from conf.evaluation import Opened, check_sets, looks, require_imagenet
from conf.schema import EvaluateConfig, data_from, model_from, plain, typed
from data.config import DataConfig
from gab.augment import normalize
from gab.config import ModelConfig, TimmConfig
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.errors import UserError
from gab.evaluators import Accuracy, Conditions, Look, Results, flat, look, synsets, table
from gab.evaluators.base import OWN
from gab.models import build, variant
from gab.training import checkpoint
from gab.training.interfaces import EvalBatches
from gab.training.sizes import resize, trained_at
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
    check_sets(config.evaluators, config.data)
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
    loading = {"batch_size": config.run.eval_batch, **loader_options(processes, config.run.workers)}
    chosen = looks(config.evaluators, config.data, loading)
    own = own_images(processes, config, loading) if OWN in config.evaluators else None
    if own:
        chosen = {OWN: Look(Accuracy(OWN), own), **chosen}
    subject = networks(config, config.data, own().classes if own else None)
    folder = Path(config.eval.out) if config.eval.out else default_folder(config, subject.name)
    if processes.first:
        print(f"evaluating {subject.name} by {', '.join(chosen)}", flush=True)
        if own:
            print(f"images of {config.data.name}: {own().describe()}", flush=True)
    for model in subject.networks.values():
        model.to(processes.device)
    results = look(chosen, subject.networks, conditions(processes, config, folder))
    if processes.first:
        report(config, subject, results, folder)


def own_images(processes: Processes, config: EvaluateConfig, loading: dict[str, Any]) -> Opened:
    """The data set's images; the first process prepares it."""
    assert config.data is not None
    if processes.first:
        data.prepare(config.data)
    processes.barrier()
    settings = config.data
    return Opened(lambda part: data.open_eval(settings, split=config.eval.split, **loading))


def conditions(processes: Processes, config: EvaluateConfig, folder: Path) -> Conditions:
    """How the networks are looked at."""
    assert config.data is not None
    mean, std = (torch.tensor(v, device=processes.device) for v in (config.data.mean, config.data.std))
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds

    def prepare(images: Tensor) -> Tensor:
        return normalize(images, mean, std)

    def between() -> None:
        processes.heartbeat.at("evaluating")

    def watch(batches: EvalBatches, name: str) -> Any:
        return tqdm(batches, name, len(batches), disable=not processes.first, mininterval=interval)

    bf16 = config.eval.precision == "bf16"
    return Conditions(prepare, processes, bf16=bf16, folder=folder, between=between, watch=watch)


@dataclasses.dataclass
class Subject:
    """What is evaluated: its name, its networks by the kind of their weights, how far it was trained."""

    name: str
    networks: dict[str, nn.Module]
    epoch: int | None = None
    step: int | None = None


def networks(config: EvaluateConfig, data: DataConfig, classes: list[str] | None) -> Subject:
    """The networks to evaluate.

    Args:
        classes: of the data set's own images; None where they are not looked at.

    Raises:
        UserError: the network knows other classes than the images, or there are no such weights.
    """
    if config.checkpoint is None:
        assert isinstance(config.model, TimmConfig)
        network = published(config.model, data, config.evaluators, classes)
        return Subject(variant(config.model), {"raw": network})
    stored = checkpoint.load(Path(config.checkpoint))
    known = stored["classes"]
    if classes is not None and known != classes:
        raise UserError(
            f"{config.checkpoint} tells {len(known)} classes apart ({', '.join(known[:3])} …), but data={data.name} "
            f"has {len(classes)} ({', '.join(classes[:3])} …): evaluate it on data of its classes"
        )
    require_imagenet(config.evaluators, known, config.checkpoint)
    kinds = {"raw": "model", "ema": "ema"}
    wanted = [k for k in kinds if config.eval.weights in (k, "both") and stored[kinds[k]] is not None]
    if not wanted:
        raise UserError(f"{config.checkpoint} holds no averaged weights: take eval.weights=raw")
    trained = data_from(stored["config"]["data"])
    compare_transforms("it was trained with", {key: getattr(trained, key) for key in TRANSFORM}, data)
    model = model_from(stored["config"]["model"])
    restored = {k: restore(model, stored, kinds[k], data.image_size) for k in wanted}
    return Subject(variant(model), restored, stored["epochs"], stored["step"])


def published(model: TimmConfig, data: DataConfig, evaluators: Iterable[str], classes: list[str] | None) -> nn.Module:
    """A network of timm's registry with its published weights."""
    if model.pretrained is None:
        model.pretrained = True
    count = len(synsets() if classes is None else classes)
    require_imagenet(evaluators, count, f"data={data.name}")
    network = build(model, image_size=data.image_size, num_classes=count, seed=0)
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {}) if model.pretrained else {}
    if cfg.get("num_classes", count) != count:
        what = f"evaluators=[{','.join(evaluators)}]" if classes is None else f"data={data.name}"
        raise UserError(
            f"the weights of {model.name} tell {cfg['num_classes']} classes apart, but {what} has {count}: "
            "evaluate them on data of their classes"
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


def restore(config: ModelConfig, stored: dict[str, Any], weights: str, image_size: int) -> nn.Module:
    """A network of the checkpoint, moved to `image_size` if it was trained at another."""
    if isinstance(config, TimmConfig):
        config.pretrained = False  # its weights are about to be replaced
    trained_size = trained_at(stored)
    model = build(config, image_size=trained_size, num_classes=len(stored["classes"]), seed=0)
    load_weights(model, stored[weights])
    resize(model, trained_size, image_size)
    return model


def default_folder(config: EvaluateConfig, name: str) -> Path:
    """`runs/NAME/eval/CHECKPOINT-DATA-SPLIT/`, or `runs/eval/MODEL-DATA-SPLIT/` for published weights."""
    assert config.data is not None
    what = f"{config.data.name}-{config.eval.split}-{config.data.image_size}"
    if config.checkpoint is None:
        return Path(config.run.dir) / "eval" / f"{name}-{what}"
    path = Path(config.checkpoint)
    return path.parent.parent / "eval" / f"{path.stem}-{what}"


def report(config: EvaluateConfig, subject: Subject, results: Results, folder: Path) -> None:
    """A table for people, the same as JSON for programs, and a row per kind of weights in the table of the run."""
    assert config.data is not None
    data, split, precision = config.data, config.eval.split, config.eval.precision
    print(f"{subject.name} on {data.name} ({split}), {data.image_size} px, {precision}; shares in percent")
    found = {weights: flat(by_evaluator.items()) for weights, by_evaluator in results.items()}
    scores = (folder if config.eval.out else folder.parent) / "scores.csv"
    for weights, by_evaluator in results.items():
        for name, result in by_evaluator.items():
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in result.numbers.items())
            print(f"{weights:4} {name:7} {result.images:9,} images  {numbers}")
        key = table.row_of(
            data,
            checkpoint=Path(config.checkpoint).name if config.checkpoint else subject.name,
            weights=weights,
            epoch=subject.epoch,
            step=subject.step,
            split=split,
            precision=precision,
        )
        table.enter(scores, key, found[weights])
    content = {
        "model": subject.name,
        "checkpoint": config.checkpoint,
        "data": dataclasses.asdict(data),
        "evaluators": {name: dataclasses.asdict(settings) for name, settings in config.evaluators.items()},
        "split": split,
        "precision": precision,
        "scores": found,
        "files": [str(file) for one in results.values() for result in one.values() for file in result.files],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"scores of all checkpoints: {scores}; of this one, with predictions and tables: {folder}")


if __name__ == "__main__":
    with sentences():
        main()
