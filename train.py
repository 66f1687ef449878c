"""Train a network: `python train.py model=vit_b16_gab data=imagenet`. Every setting is a file or a line in conf/."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

import data
from conf.checks import check, fill_in
from conf.errors import refuse_unknown, sentences
from conf.evaluation import check_sets, looks, require_imagenet
from conf.schema import Config, plain, typed
from gab.distributed import signals, slurm
from gab.distributed.launch import launch
from gab.distributed.processes import Processes, choose_device, count_processes, loader_options
from gab.errors import STOPPED, Stopped, UserError
from gab.models import build, variant
from gab.models.gaussian import gaussian_values
from gab.models.relative import start_errors
from gab.tracking import figures, provenance
from gab.tracking.observer import Observer
from gab.tracking.record import read
from gab.training import batchnorm, checkpoint
from gab.training.checkpoint import expected_bytes
from gab.training.checkpoint_store import CheckpointStore, most_files
from gab.training.determinism import make_deterministic
from gab.training.distillation import Teacher, employ
from gab.training.dry import report
from gab.training.feeding import shortage
from gab.training.init_from import Start, start_from
from gab.training.lock import RunLock
from gab.training.profile import profiled
from gab.training.run_folder import check_folder, make_folder, refuse_another, run_name
from gab.training.schedule import effective_lr
from gab.training.sizes import size_at
from gab.training.testing import score_test_images
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
    if info.train < config.train.batch_size:
        raise UserError(
            f"the {info.train:,} training images of data={config.data.name} do not fill one batch: "
            f"lower train.batch_size={config.train.batch_size}"
        )
    if config.train.test == "best" and info.test is None:
        raise UserError(
            f"train.test=best is for test images, and data={config.data.name} has none beside those to validate on: "
            "set train.test=last, data.split=pooled or data.holdout"
        )
    require_imagenet(config.evaluators, info.classes, f"data={config.data.name}")
    check_sets(config.evaluators, config.data)
    if config.run.dry:
        model = network(config, len(info.classes), config.data.image_size)
        print(report(config, model, variant=variant(config.model), train_images=info.train, processes=processes))
        return
    container = plain(cfg)
    folder = Path(config.run.dir) / (config.run.name or run_name(container, variant(config.model)))
    check_folder(folder, container)
    if not finished(folder, config.data.metric):
        try:
            launch(train, (config, container, folder), count=processes, device=device)
        except Stopped as stopped:
            if stopped.signal not in signals.REQUEUE or not slurm.own_job():
                raise
            print(signals.sentence(stopped, "the job is queued again"), file=sys.stderr, flush=True)
            print(slurm.requeue(), file=sys.stderr, flush=True)  # last: SLURM ends the job at once
            raise SystemExit(STOPPED) from None


def finished(folder: Path, metric: str) -> bool:
    """Whether the run has come to its end; if so, says it."""
    record = folder / "record.jsonl"
    rows = read(record) if record.is_file() else []
    if not rows or rows[-1]["kind"] != "end":
        return False
    print(f"{folder} is finished; for another run, change the config or run.name.")
    print(summary(folder, rows[-1], drawn=[], metric=metric))
    return True


def network(config: Config, num_classes: int, image_size: int) -> nn.Module:
    """The initialised model of the run."""
    return build(config.model, image_size=image_size, num_classes=num_classes, seed=config.seed)


def train(processes: Processes, config: Config, container: dict[str, Any], folder: Path) -> None:
    """What each process of the run does."""
    torch.compiler.reset()  # in a sweep, the run before has used up the number of recompilations
    make_deterministic(config.run.deterministic)
    ready = prepare(processes, config)
    loading = {"batch_size": config.run.eval_batch, **loader_options(processes, config.run.workers)}
    with claim(processes, config, container, folder, ready.model) as store:
        trainer = Trainer(
            config,
            container,
            model=ready.model,
            train=ready.batches,
            evaluation=ready.evaluation,
            processes=processes,
            folder=folder,
            store=store,
            data=processes.broadcast(data.fingerprint(config.data) if processes.first else None),
            reopen=ready.reopen,
            teacher=ready.teacher,
            origins=ready.origins,
            looks=looks(config.evaluators, config.data, loading),
        )
        stored = take_up(trainer)
        observer = observe(trainer, config, container, folder, stored)
        exit_code = 1
        try:
            introduce(observer, trainer, config, folder, stored, ready)
            with profiled(folder if config.run.profile and processes.first else None):
                trainer.fit(observer)
                if ready.test:
                    score_test_images(trainer, ready.test)
            processes.heartbeat.at("closing")
            with checkpoint.writing(folder / "figures"):
                drawn = figures.draw(read(folder / "record.jsonl"), folder / "figures") if processes.first else []
            scores = trainer.finish()
            exit_code = 0
        except Stopped:
            exit_code = STOPPED
            raise
        finally:
            processes.heartbeat.at("closing")
            observer.close(exit_code)
            trainer.close()
            if ready.test:
                ready.test.close()
    if processes.first:
        print(summary(folder, scores, drawn, config.data.metric))


class Ready(NamedTuple):
    """What a run is made of, opened and built.

    `reopen` gives the training batches with images of another size; `start` tells of weights that were not drawn.
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


def prepare(processes: Processes, config: Config) -> Ready:
    """Open the data and build the model: what cannot work shall leave nothing behind."""
    if processes.first:
        data.prepare(config.data)
    processes.barrier()
    loading = loader_options(processes, config.run.workers)

    def open_train(image_size: int) -> data.TrainBatches:
        sized = dataclasses.replace(config.data, image_size=image_size)
        return data.open_train(sized, batch_size=config.train.batch_size, seed=config.seed, **loading)

    image_size = size_at(config.train.sizes, 0, config.data.image_size)
    batches = open_train(image_size)
    limit = config.train.eval_images
    evaluation = data.open_eval(config.data, batch_size=config.run.eval_batch, limit=limit, **loading)
    has_test = "test" in data.splits(config.data)
    test_images = (
        data.open_eval(config.data, batch_size=config.run.eval_batch, split="test", **loading) if has_test else None
    )
    classes = batches.classes
    model, start = network(config, len(classes), image_size), None
    if config.init.source is not None:
        model, start = start_from(config.init, config.model, image_size=image_size, classes=classes, seed=config.seed)
    teacher = employ(config, model, len(classes), processes.device) if config.distillation.teacher else None
    return Ready(batches, open_train, evaluation, test_images, model, start, teacher)


@contextmanager
def claim(
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


def take_up(trainer: Trainer) -> dict[str, Any] | None:
    """Go on from the run's newest checkpoint, if it has one; returns what that holds.

    Raises:
        UserError: it is of another config, model or data set.
    """
    processes = trainer.processes
    found = trainer.store.newest(lambda text: print(text, file=sys.stderr, flush=True)) if trainer.store else None
    path = processes.broadcast(found[0] if found else None)
    if path is None:
        return None
    content = found[1] if found else checkpoint.load(path)
    refuse_another(path, content, container=trainer.container, data=trainer.data, origins=trainer.origins)
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


def introduce(
    observer: Observer,
    trainer: Trainer,
    config: Config,
    folder: Path,
    stored: dict[str, Any] | None,
    ready: Ready,
) -> None:
    """Say what is trained and on what; the first start of a run writes it into the record too."""
    state, batches, evaluation = trainer.state, trainer.train_batches, trainer.evaluation
    origin = provenance.save(folder) if trainer.processes.first else {}
    parameters = sum(p.numel() for p in state.model.parameters())
    lr = effective_lr(config.optim, config.train.batch_size)
    observer.say(
        f"{folder}: {variant(config.model)}, {parameters:,} parameters, {trainer.macs / 1e9:.2f} G MACs per image"
    )
    observer.say(f"training:   {batches.describe()}")
    if said := shortage(batches.rate, trainer.macs, trainer.peak):
        observer.say(said)
    published = "; these are the published test images" if data.validates_on_test(config.data) else ""
    observer.say(f"evaluation: {evaluation.describe()}{published}")
    observer.say(
        f"epochs: {config.train.epochs} of {trainer.steps_per_epoch} steps, batch {config.train.batch_size}, "
        f"learning rate {lr:g}, {config.train.precision}, {trainer.processes.count} x {trainer.processes.device.type}"
    )
    images = config.run.micro_batch or config.train.batch_size // trainer.processes.count
    if said := batchnorm.describe(state.model, trainer.processes, images):
        observer.say(said)
    if ready.teacher:
        observer.say(ready.teacher.describe())
    if stored:
        observer.say(f"continues the run at epoch {state.step / trainer.steps_per_epoch:.4g}, step {state.step:,}")
        before, now = stored["computed"], trainer.computed()
        changes = [f"{key} {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
        if changes:
            observer.say(f"computed otherwise ({', '.join(changes)}), so it equals an undisturbed run only to rounding")
        return
    if ready.start:
        observer.say(ready.start.sentence)
    if errors := start_errors(state.model):
        observer.say(f"relative bias: starts as the Gaussian to within {max(errors):.2g} (root mean square of a layer)")
    observer.write(
        "start",
        epoch=0,
        step=0,
        variant=variant(config.model),
        seed=config.seed,
        parameters=parameters,
        macs=trainer.macs,
        classes=len(batches.classes),
        train_images=batches.num_samples,
        eval_images=evaluation.num_samples,
        processes=trainer.processes.count,
        device=str(trainer.processes.device.type),
        precision=config.train.precision,
        threads=torch.get_num_threads(),
        effective_lr=lr,
        commit=origin.get("commit"),
        weights=trainer.initial_weights,
        origins=trainer.origins,
        init=ready.start.sentence if ready.start else None,
        **gaussian_values(state.model),
    )


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
