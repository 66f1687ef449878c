"""Train a network: `python train.py model=vit_b16_gab data=imagenet`. Every setting is a file or a line in conf/."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

import data
from conf.checks import check, check_images, fill_in
from conf.errors import refuse_unknown, sentences
from conf.evaluation import check_looks, check_sets, looks
from conf.introduction import introduce
from conf.schema import Config, plain, typed
from gab.distributed import signals, slurm
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.errors import STOPPED, Stopped
from gab.models import build, variant
from gab.tracking import figures
from gab.tracking.observer import Observer
from gab.tracking.record import Row, read
from gab.training import checkpoint
from gab.training.checkpoint import expected_bytes
from gab.training.checkpoint_store import CheckpointStore, has_checkpoint, most_files
from gab.training.determinism import make_deterministic
from gab.training.distillation import Teacher, make_teacher
from gab.training.dry import report
from gab.training.init_from import Start, source_digest, start_from
from gab.training.lock import RunLock
from gab.training.profile import profiled
from gab.training.run_folder import check_folder, make_folder, place, refuse_another, run_name
from gab.training.sizes import size_at
from gab.training.trainer import Trainer


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """The command line; what a user can get wrong ends in one sentence."""
    with sentences():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Refuse what cannot work, then train in as many processes as the config wants."""
    refuse_unknown(plain(cfg))
    device = choose_device(cfg.run.device)
    processes = count_processes(cfg.run.processes, device)
    fill_in(cfg, device)
    config: Config = typed(cfg)
    check(config, processes)
    info = data.inspect(config.data)
    check_images(config, info)
    check_sets(config.evaluators, config.data)
    if config.run.dry:
        model = network(config, len(info.classes), config.data.image_size)
        print(report(config, model, variant=variant(config.model), train_images=info.train, processes=processes))
        return
    container = plain(cfg)
    folder = Path(config.run.dir) / (config.run.name or run_name(container, variant(config.model)))
    check_folder(folder, container)
    if end := end_row(folder):
        print(f"{folder} is finished; for another run, change the config or run.name.")
        print(summary(folder, end, drawn=[], metric=config.data.metric))
        return
    try:
        launch(train, (config, container, folder, info.classes), count=processes, device=device)
    except Stopped as stopped:
        if stopped.signal not in signals.REQUEUE or not slurm.own_job():
            raise
        print(signals.sentence(stopped, "the job is queued again"), file=sys.stderr, flush=True)
        print(slurm.requeue(), file=sys.stderr, flush=True)  # last: SLURM ends the job at once
        raise SystemExit(STOPPED) from None


def end_row(folder: Path) -> Row | None:
    """The row `end` of the record, with the final scores, where the run has come to its end."""
    record = folder / "record.jsonl"
    rows = read(record) if record.is_file() else []
    return rows[-1] if rows and rows[-1]["kind"] == "end" else None


def network(config: Config, num_classes: int, image_size: int) -> nn.Module:
    """The initialised model of the run."""
    return build(config.model, image_size=image_size, num_classes=num_classes, seed=config.seed)


def train(processes: Processes, config: Config, container: dict[str, Any], folder: Path, classes: list[str]) -> None:
    """What each process of the run does."""
    torch.compiler.reset()  # in a sweep, the run before has used up the number of recompilations
    make_deterministic(config.run.deterministic)
    ready = prepare(processes, config, folder, classes)
    loading = {"batch_size": config.run.eval_batch, **loader_options(processes, config.run.workers)}
    chosen = looks(config.evaluators, config.data, loading)
    if not config.train.sizes:  # else the network is made for others first
        check_looks(chosen, ready.model, config.data.image_size)
    with open_store(processes, config, container, folder, ready.model) as store, ExitStack() as opened:
        if ready.test:
            opened.enter_context(closing(ready.test))
        trainer = Trainer(
            config,
            container,
            model=ready.model,
            train=ready.batches,
            evaluation=ready.evaluation,
            processes=processes,
            folder=folder,
            store=store,
            data_fingerprint=processes.broadcast(data.fingerprint(config.data) if processes.first else None),
            reopen=ready.reopen,
            teacher=ready.teacher,
            origins=ready.origins,
            looks=chosen,
        )
        opened.enter_context(closing(trainer))
        stored = resume(trainer)
        observer = opened.enter_context(observe(trainer, config, container, folder, stored))
        opened.callback(processes.heartbeat.at, "closing")  # before the dashboard is waited for
        introduce(observer, trainer, config, stored=stored, start=ready.start, teacher=ready.teacher)
        with profiled(folder if config.run.profile and processes.first else None):
            trainer.fit(observer)
            if ready.test:
                trainer.test(ready.test)
        drawn = draw(processes, folder)
        scores = trainer.finish()
    if processes.first:
        print(summary(folder, scores, drawn, config.data.metric))


class Ready(NamedTuple):
    """What a run is made of, opened and built.

    `reopen` gives the training batches with images of another size; `start` tells of weights that were not drawn, in
    the first start of a run.
    """

    batches: data.TrainBatches
    reopen: Callable[[int], data.TrainBatches]
    evaluation: data.EvalBatches
    test: data.EvalBatches | None
    model: nn.Module
    start: Start | None
    teacher: Teacher | None

    @property
    def origins(self) -> dict[str, str]:
        """Fingerprints of the weights that the run begins with or is taught by."""
        found = {"init": self.start, "teacher": self.teacher}
        return {name: part.digest for name, part in found.items() if part is not None}


def prepare(processes: Processes, config: Config, folder: Path, classes: list[str]) -> Ready:
    """Build the model and open the data: what cannot work shall leave nothing behind.

    Weights come first: a wrong name among them shall not be noticed after the data set has been written.
    """
    image_size = size_at(config.train.sizes, 0, config.data.image_size)
    resumes = processes.broadcast(has_checkpoint(folder))
    with processes.in_turn():  # weights may be downloaded
        model, start, teacher = network(config, len(classes), image_size), None, None
        if config.init.source is not None and not resumes:
            model, start = start_from(
                config.init, config.model, image_size=image_size, classes=classes, seed=config.seed
            )
        if config.distillation.teacher is not None:
            teacher = make_teacher(config, model, len(classes), processes.device)
    if processes.first:
        data.prepare(config.data)
    processes.barrier()
    loading = loader_options(processes, config.run.workers)

    def open_train(image_size: int) -> data.TrainBatches:
        sized = dataclasses.replace(config.data, image_size=image_size)
        return data.open_train(sized, batch_size=config.train.batch_size, seed=config.seed, **loading)

    batches = open_train(image_size)
    limit = config.train.eval_images
    evaluation = data.open_eval(config.data, batch_size=config.run.eval_batch, limit=limit, **loading)
    has_test = "test" in data.splits(config.data)
    test_images = (
        data.open_eval(config.data, batch_size=config.run.eval_batch, split="test", **loading) if has_test else None
    )
    return Ready(batches, open_train, evaluation, test_images, model, start, teacher)


@contextmanager
def open_store(
    processes: Processes, config: Config, container: dict[str, Any], folder: Path, model: nn.Module
) -> Iterator[CheckpointStore | None]:
    """The first process makes the run's folder and holds its lock; it gets the place of the checkpoints.

    Raises:
        UserError: the folder cannot be written, or another start is training in it.
    """
    if not processes.first:
        processes.barrier()
        yield None
        return
    size = expected_bytes(sum(p.numel() for p in model.parameters()), ema=bool(config.train.ema_decay))
    make_folder(folder, container, needed=most_files(config.checkpoint.keep) * size)
    with (
        RunLock(folder) as lock,
        closing(CheckpointStore(folder / "checkpoints", keep=config.checkpoint.keep, check=lock.check)) as store,
    ):
        processes.barrier()
        yield store


def resume(trainer: Trainer) -> dict[str, Any] | None:
    """Go on from the run's newest checkpoint, if it has one; returns what that holds.

    Raises:
        UserError: it is of another config, model or data set, or of other weights.
    """
    processes, init = trainer.processes, trainer.config.init
    found = trainer.store.newest(lambda text: print(text, file=sys.stderr, flush=True)) if trainer.store else None
    path = processes.broadcast(found[0] if found else None)
    if path is None:
        return None
    content = found[1] if found else checkpoint.load(path)
    origins = trainer.origins
    if init.source and place(trainer.container, "init.source") != place(content["config"], "init.source"):
        with processes.in_turn():
            origins = {**origins, "init": source_digest(init, trainer.config.model)}
    refuse_another(path, content, container=trainer.container, data=trainer.data_fingerprint, origins=origins)
    trainer.resume(content)
    return content


def observe(
    trainer: Trainer, config: Config, container: dict[str, Any], folder: Path, stored: dict[str, Any] | None
) -> Observer:
    """Who is told what the run does, from where the checkpoint stands."""
    return Observer(
        folder,
        config.tracking,
        container,
        variant=variant(config.model),
        seed=config.seed,
        epochs=config.train.epochs,
        steps_per_epoch=trainer.steps_per_epoch,
        step=trainer.state.step,
        metric=config.data.metric,
        best=trainer.state.best_score,
        position=stored["record"] if stored else 0,
        wandb_id=stored["wandb_id"] if stored else None,
        active=trainer.processes.first,
    )


def draw(processes: Processes, folder: Path) -> list[Path]:
    """Draw the figures of the record, on the first process; returns their files."""
    processes.heartbeat.at("closing")
    if not processes.first:
        return []
    with checkpoint.writing(folder / "figures"):
        return figures.draw(read(folder / "record.jsonl"), folder / "figures")


METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}


def summary(folder: Path, scores: dict[str, Any], drawn: list[Path], metric: str) -> str:
    """The last words: the headline is that of the last epoch, by the metric of the data set."""

    def share(field: str) -> str:
        ema = f" (EMA {scores[f'{field}_ema']:.2f} %)" if f"{field}_ema" in scores else ""
        return f"{METRICS[metric]} {scores[field]:.2f} %{ema}"

    lines = [f"{share(metric)} after the last epoch; everything is in {folder}"]
    if f"test_{metric}" in scores:
        lines.append(f"test images: {share(f'test_{metric}')} with the weights that train.test names")
    lines += [f"figure: {path}" for path in drawn if path.suffix == ".png"]
    return "\n".join(lines)


if __name__ == "__main__":
    from train import main  # by its name: Hydra's submitit launcher sends it to other machines

    with sentences():
        main()
