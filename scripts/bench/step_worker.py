"""Times the train step of one network: `step_worker.py GROUP NETWORK FORM`; the forms are those of bench_step.py.

It prints a measurement as JSON, or with --serve one for every line that it reads.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm
import torch
from hydra import compose, initialize_config_dir
from torch import nn

import data
import gab  # noqa: F401  (registers the models)
from conf.checks import fill_in
from conf.schema import typed
from gab.attention.choice import describe, use
from gab.distributed.processes import Ranks, join, loader_options
from gab.models.registry import REGISTERED
from gab.models.stochastic import attach_keys
from gab.training.assembly import begin, make_step
from gab.training.determinism import make_deterministic
from gab.training.flops import macs
from gab.training.prefetch import Prefetcher
from scripts.bench.processes import serve
from scripts.bench.step_networks import GROUPS, Network

WARM = {"cpu": 2, "cuda": 5}  # steps before those that are timed


def main() -> None:
    """Measure once, or as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=list(GROUPS))
    parser.add_argument("network")
    parser.add_argument("form")
    parser.add_argument("--serve", action="store_true")
    add_options(parser)
    given = parser.parse_args()
    measured = Measured(GROUPS[given.group][given.network], given.form, given)
    if given.serve:
        serve(measured.about, lambda _: measured.measure())
    else:
        print(json.dumps(measured.measure()))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a measurement depends on, beside the network and the form."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="that are timed in each measurement")
    parser.add_argument("--source", nargs="+", metavar="SETTING", help="of train.py: data=folder data.root=FOLDER")
    parser.add_argument("--source-steps", type=int, default=100, help="that are timed on images from files")


def options(given: argparse.Namespace) -> list[str]:
    """The same options, written out."""
    shared = [f"--{k}={getattr(given, k.replace('-', '_'))}" for k in ("device", "batch-size", "steps", "source-steps")]
    return [*shared, *(("--source", *given.source) if given.source else ())]


class Measured:
    """A network that trains in this process, as many steps as are asked for."""

    def __init__(self, network: Network, form: str, given: argparse.Namespace):
        self.network, self.form, self.given, self.device = network, form, given, torch.device(given.device)
        self.files = "files" in form
        settings = timm.get_pretrained_cfg(network.name, allow_unregistered=False)
        assert settings is not None
        self.side = network.options.get("img_size", settings.input_size[1])
        self.classes = network.options.get("num_classes", settings.num_classes)
        torch.manual_seed(0)
        self.model = timm.create_model(network.name, drop_path_rate=0.1, **network.options).train()
        parameters = sum(p.numel() for p in self.model.parameters())
        self.about: dict[str, Any] = {"parameters": parameters, "macs": macs(self.model, self.side)}
        self.about["attention"] = describe(self.model, network.attention, self.device)  # None for timm's
        self.waited = lambda: 0.0  # seconds that steps have waited for images, so far
        self.before = _resident()
        make_deterministic("deterministic" in form)
        self.steps = self.trainer() if "trainer" in form else self.plain()
        self.train(WARM[given.device])
        torch.cuda.empty_cache()  # others share the device

    def train(self, count: int) -> None:
        """Run `count` steps and wait for the device."""
        for _ in range(count):
            next(self.steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(self) -> dict[str, float]:
        """Wall and processor seconds of a step, on average; the share of waiting for images; and peak memory: the
        device's, or on the CPU what the steps added to the process."""
        cuda, count = self.device.type == "cuda", self.given.source_steps if self.files else self.given.steps
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self.train(WARM[self.device.type])  # for memory that was given back, and batches that were read meanwhile
        cpu, waited, started = time.process_time(), self.waited(), time.perf_counter()
        self.train(count)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        memory = torch.cuda.max_memory_allocated() if cuda else _resident() - self.before
        torch.cuda.empty_cache()
        waited = (self.waited() - waited) / seconds
        return {"seconds": seconds / count, "cpu": cpu / count, "waited": waited, "memory": memory}

    def plain(self) -> Iterator[None]:
        """A loop as anybody would write it, on one batch of random images."""
        device, batch, model = self.device, self.given.batch_size, self.model.to(self.device)
        use(model, self.network.attention)
        keys = attach_keys(model, 0, device) if self.network.name in REGISTERED else None  # timm's draw as timm's do
        if "compiled" in self.form:
            model.compile()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = torch.randn(batch, 3, self.side, self.side, device=device)
        labels = torch.randint(self.classes, (batch,), device=device)
        for number in itertools.count():
            if keys:
                keys.set(0, number, torch.arange(batch))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield

    def trainer(self) -> Iterator[None]:
        """The step of train.py, fed by its prefetcher, on one random batch in the host's memory or on files."""
        config, processes = self.config(), join(Ranks(), self.given.device)
        state = begin(config, self.model, processes, self.side)
        step = make_step(config, state, processes, None)
        batches = from_files(config, processes) if self.files else self.random_batches()
        prefetcher = Prefetcher(batches, self.device, lambda batch, number: step.draw(batch, epoch=0, step=number))
        self.waited = lambda: prefetcher.waited
        for batch, parts in prefetcher:
            step(batch, parts, lr=1e-3)
            yield

    def config(self) -> Any:
        """The config that train.py would use, with the settings of `--source`."""
        settings = [
            *("augment=none", "train.ema_decay=null", f"train.batch_size={self.given.batch_size}"),
            *(f"run.device={self.given.device}", f"run.attention={self.network.attention}"),
            *(f"run.deterministic={'deterministic' in self.form}", *(self.given.source if self.files else [])),
            f"data.image_size={self.side}",
        ]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", settings)
        fill_in(config, self.given.device)
        return typed(config)

    def random_batches(self) -> Iterator[data.Batch]:
        """One batch, again and again."""
        batch = self.given.batch_size
        images = torch.randint(256, (batch, self.side, self.side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.randint(self.classes, (batch,))
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return itertools.repeat(data.Batch(images, labels, torch.arange(batch), 0))


def from_files(config: Any, processes: Any) -> Iterator[data.Batch]:
    """Epoch after epoch, as train.py reads them."""
    data.prepare(config.data)
    loading = loader_options(processes, config.run.workers)
    batches = data.open_train(config.data, batch_size=config.train.batch_size, seed=0, **loading)
    return itertools.chain.from_iterable(map(batches.epoch, itertools.count()))


def _resident() -> int:
    """Most bytes of memory that this process has held at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
