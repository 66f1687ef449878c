"""Evaluate a checkpoint or a published model: `python eval.py checkpoint=runs/NAME/checkpoints/last.pt`."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

import data
from conf.checks import check_evaluation
from conf.errors import refuse_unknown, sentences
from conf.evaluation import Opened, check_looks, check_sets, looks, needs_own_images
from conf.networks import Subject, compare_splits, data_of, find_subject
from conf.schema import EvaluateConfig, data_for, plain, typed
from data.config import DataConfig
from gab.attention.choice import describe, use, wanted
from gab.augment import normalize
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.errors import UserError
from gab.evaluators import Accuracy, Conditions, Look, Results, flat, look, table
from gab.evaluators.base import OWN
from gab.training import checkpoint
from gab.training.interfaces import EvalBatches

AGAIN = "evaluate again, or set eval.out to another place"


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    with sentences():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Refuse what cannot work, then evaluate in as many processes as the config wants."""
    own = None if cfg.checkpoint is None else data_of(checkpoint.load(Path(cfg.checkpoint)))
    cfg.data = data_for(cfg.data, own)
    refuse_unknown(plain(cfg))
    config: EvaluateConfig = typed(cfg)
    check_evaluation(config)
    assert config.data is not None
    images = config.data
    if own is not None and needs_own_images(config.evaluators):
        compare_splits(own, images, config.eval.split)
    check_sets(config.evaluators, images)
    device = choose_device(config.run.device)
    launch(evaluate, (config, images), count=count_processes(config.run.processes, device), device=device)


def evaluate(processes: Processes, config: EvaluateConfig, images: DataConfig) -> None:
    """What each process of the evaluation does; `images` is the data set."""
    loading = {"batch_size": config.run.eval_batch, **loader_options(processes, config.run.workers)}
    if needs_own_images(config.evaluators):
        if processes.first:
            data.prepare(images)
        processes.barrier()
    chosen = looks(config.evaluators, images, loading, config.eval.split)
    own = None
    if OWN in config.evaluators:
        own = Opened(lambda part: data.open_eval(images, split=config.eval.split, **loading))
        chosen = {OWN: Look(Accuracy(OWN), own), **chosen}
    classes = own().classes if own else None
    with processes.in_turn():  # weights may be downloaded
        subject = find_subject(config, images, classes)
    for model in subject.networks.values():
        model.to(processes.device)
        use(model, wanted(config.run.attention))
    one = next(iter(subject.networks.values()))
    check_looks(chosen, one, images.image_size)
    if processes.first:
        print(f"evaluating {subject.name} by {', '.join(chosen)}", flush=True)
        if own:
            print(f"images of {images.name}: {own().describe()}", flush=True)
        if attends := describe(one, config.run.attention, processes.device):
            print(f"attention: {attends}", flush=True)
    folder = Path(config.eval.out) if config.eval.out else default_folder(config, images, subject.name)
    scores = (folder if config.eval.out else folder.parent) / "scores.csv"
    if processes.first:
        make_folders(scores.parent, folder)
    with checkpoint.writing(folder, AGAIN):
        results = look(chosen, subject.networks, conditions(processes, config, images, folder))
    if processes.first:
        report(config, images, subject, results)
        with checkpoint.writing(folder, AGAIN):
            keep(config, images, subject, results, folder, scores)


def conditions(processes: Processes, config: EvaluateConfig, images: DataConfig, folder: Path) -> Conditions:
    """How the networks are looked at."""
    mean, std = (torch.tensor(v, device=processes.device) for v in (images.mean, images.std))
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds

    def prepare(batch: Tensor) -> Tensor:
        return normalize(batch, mean, std)

    def between() -> None:
        processes.heartbeat.at("evaluating")

    def watch(batches: EvalBatches, name: str) -> Any:
        return tqdm(batches, name, len(batches), disable=not processes.first, mininterval=interval)

    bf16 = config.eval.precision == "bf16"
    figures = folder / "figures"
    return Conditions(prepare, processes, bf16=bf16, folder=folder, figures=figures, between=between, watch=watch)


def default_folder(config: EvaluateConfig, images: DataConfig, name: str) -> Path:
    """`runs/NAME/eval/CHECKPOINT-DATA-SPLIT-SIZE/`, or `runs/eval/MODEL-DATA-SPLIT-SIZE/` for published weights.

    Between DATA and SPLIT stands how the split was drawn, where it is not as published.
    """
    drawn = table.drawn(images, config.eval.split)
    what = "-".join([images.name, *([drawn] if drawn else []), config.eval.split, str(images.image_size)])
    if config.checkpoint is None:
        return Path(config.run.dir) / "eval" / f"{name}-{what}"
    path = Path(config.checkpoint)
    return path.parent.parent / "eval" / f"{path.stem}-{what}"


def make_folders(*folders: Path) -> None:
    """Make the folders and write a little into each: what cannot be kept shall not take hours first.

    Raises:
        UserError: one of them cannot be written.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be written ({error.strerror}): make room, or set eval.out to another place"
            ) from error


def report(config: EvaluateConfig, images: DataConfig, subject: Subject, results: Results) -> None:
    """A table for people."""
    drawn = table.drawn(images, config.eval.split)
    which = f"{config.eval.split}, {drawn}" if drawn else config.eval.split
    how = f"{images.image_size} px, {config.eval.precision}"
    print(f"{subject.name} on {images.name} ({which}), {how}; shares in percent")
    width = max(len(name) for by_evaluator in results.values() for name in by_evaluator)
    for weights, by_evaluator in results.items():
        for name, result in by_evaluator.items():
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in result.numbers.items())
            seen = f"{result.images:,} images" if result.images else "no images"
            print(f"{weights:4} {name:{width}} {seen:>16}  {numbers or 'no numbers: its tables say why'}")


def keep(
    config: EvaluateConfig, images: DataConfig, subject: Subject, results: Results, folder: Path, scores: Path
) -> None:
    """The same as JSON for programs, and a row per kind of weights in the table `scores` of the run."""
    split, precision = config.eval.split, config.eval.precision
    found = {weights: flat(by_evaluator.items()) for weights, by_evaluator in results.items()}
    for weights, numbers in found.items():
        key = table.row_of(
            images,
            checkpoint=Path(config.checkpoint).name if config.checkpoint else subject.name,
            weights=weights,
            epoch=subject.epoch,
            step=subject.step,
            split=split,
            precision=precision,
        )
        table.enter(scores, key, numbers)
    content = {
        "model": subject.name,
        "checkpoint": config.checkpoint,
        "data": dataclasses.asdict(images),
        "evaluators": {name: dataclasses.asdict(settings) for name, settings in config.evaluators.items()},
        "split": split,
        "precision": precision,
        "scores": found,
        "files": [str(file) for one in results.values() for result in one.values() for file in result.files],
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"scores of all checkpoints: {scores}; of this one, with predictions and tables: {folder}")
    figures = folder / "figures"
    if any(file.parent == figures for one in results.values() for result in one.values() for file in result.files):
        print(f"figures: {figures}")


if __name__ == "__main__":
    with sentences():
        main()
