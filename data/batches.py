"""Batches for training and evaluation, the same from every loader."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import torch

from data.config import DataConfig
from data.decoded import Decoded
from data.errors import DataError
from data.order import check_crop, digest, epoch_order, process_shard, process_share, repeat_samples
from data.splits import open_source, open_training, require_split, training_indices
from data.stage import ready

NO_FFCV = (
    "data.loader={} needs FFCV{}, and that does not import here ({}). Install it: as root, `apt-get install g++ "
    "pkg-config libopencv-dev libturbojpeg0-dev`, or without root `conda install -c conda-forge compilers pkg-config "
    "libjpeg-turbo 'opencv<5'`; then `pip install ffcv==1.0.2 opencv-python`. Or set {}."
)
FOR_FFCV = {  # by loader: what needs it, and what does without
    "ffcv": ("", "data.loader=torch"),
    "gpu": (" to read stored evaluation images", "data.eval_source=original"),
}


class Batch(NamedTuple):
    """Samples of one step, owned by the consumer: the memory is never written again."""

    images: torch.Tensor  # uint8 (b, 3, S, S), strides of (b, S, S, 3); on the CPU, pinned for CUDA, or on a GPU
    labels: torch.Tensor  # int64 (b,)
    indices: torch.Tensor  # int64 (b,), sample keys: position in the split + repeat * number of samples
    digest: int  # of samples, boxes and flips (`Decoded.crops`), see data.order.digest; 0 in evaluation


class TrainDecoder(Protocol):
    """What a loader offers for training."""

    classes: list[str]
    num_samples: int

    def rate(self) -> float: ...
    def decode(self, seed: int, epoch: int, keys: np.ndarray) -> Iterator[Decoded]: ...
    def close(self) -> None: ...
    def describe(self) -> str: ...


class EvalDecoder(Protocol):
    """What a loader offers for evaluation."""

    classes: list[str]
    names: list[str]

    def decode(self, indices: np.ndarray) -> Iterator[Decoded]: ...
    def close(self) -> None: ...
    def describe(self) -> str: ...


class TrainBatches:
    """Training batches of one process, a pure function of (seed, epoch, step)."""

    def __init__(
        self,
        decoder: TrainDecoder,
        pool: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int,
        processes: int,
        repeats: int = 1,
    ):
        """`pool`: ascending positions of the images to train on among those of `decoder`, int64."""
        self.decoder, self.pool, self.seed, self.rank, self.processes = decoder, pool, seed, rank, processes
        self.batch_size, self.repeats = batch_size, repeats
        self.current: object | None = None  # stands for the epoch that is being read
        self.classes, self.num_samples = decoder.classes, len(pool)
        self.steps_per_epoch = self.num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{self.num_samples} training images do not fill one batch of {batch_size}; lower the batch size."
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's block of every global batch of `epoch`, from step `start` on, which costs nothing.

        One epoch at a time: asking for the next ends the one before, which then raises RuntimeError if it is used.
        """
        order = self.pool[epoch_order(len(self.pool), self.seed, epoch)]
        order = repeat_samples(order, self.decoder.num_samples, self.repeats, self.batch_size)
        keys = process_share(order, self.batch_size, self.rank, self.processes, start)
        self.current = current = object()
        decoded = self.decoder.decode(self.seed, epoch, keys)
        while self.current is current:
            item = next(decoded, None)
            if item is None:
                return
            images, labels, batch, crops = item
            yield Batch(images, labels, torch.from_numpy(batch), digest(batch, crops))
        raise RuntimeError(f"epoch {epoch} was ended when another one was asked for: read one epoch at a time")

    def close(self) -> None:
        """Stop threads and worker processes."""
        self.decoder.close()

    def rate(self) -> float:
        """Images per second that this process is expected to read, roughly; may read some to find out."""
        return self.decoder.rate()

    def describe(self) -> str:
        """One line for the log."""
        part = f"; {self.num_samples:,} of them to train on" if self.num_samples < self.decoder.num_samples else ""
        return self.decoder.describe() + part


class EvalBatches:
    """Evaluation batches of one process: a contiguous shard, nothing padded or dropped, so that all make the split.

    With a `limit`, shards are those of so many images in equal steps through the split, which is sorted by class.
    """

    def __init__(self, decoder: EvalDecoder, batch_size: int, rank: int, processes: int, limit: int | None):
        self.decoder, self.batch_size = decoder, batch_size
        self.classes, self.names = decoder.classes, decoder.names
        self.num_samples = min(limit or len(self.names), len(self.names))  # of all processes
        shard = process_shard(self.num_samples, rank, processes)
        self.indices = shard * len(self.names) // self.num_samples

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels, batch, _ in self.decoder.decode(self.indices):
            yield Batch(images, labels, torch.from_numpy(batch), 0)

    def close(self) -> None:
        """Stop threads and worker processes."""
        self.decoder.close()

    def describe(self) -> str:
        """One line for the log."""
        return self.decoder.describe()


def open_train(
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 2,
    pin: bool = False,
) -> TrainBatches:
    """Training batches; `batch_size` is global, `pin` gives page-locked memory, for copies to a GPU.

    Raises DataError for settings or files that cannot be used.
    """
    check_crop(data.crop)
    check_loader(data)
    if batch_size < 1 or batch_size % processes:
        raise DataError(f"A global batch of {batch_size} cannot be shared by {processes} processes; set a multiple.")
    if data.repeats < 1 or (data.repeats > 1 and 2 * data.repeats > batch_size):
        raise DataError(
            f"data.repeats is {data.repeats}; set it to 1, or to at most half of the global batch of {batch_size}, "
            "so that copies of an image are not neighbours."
        )
    share = batch_size // processes
    decoder: TrainDecoder
    if data.loader == "ffcv":
        path, sidecar = ready(data, "train")
        pool = training_indices(data, sidecar.labels)
        with ffcv_loader() as ffcv:
            decoder = ffcv.BetonTrain(path, sidecar, data, share, workers, pin)
    elif data.loader == "gpu":
        from data.gpu_loader import GpuTrain, current_gpu

        if not torch.cuda.is_available():
            raise DataError("data.loader=gpu needs an NVIDIA GPU, and there is none here; set data.loader=ffcv.")
        path, sidecar = ready(data, "train")
        pool = training_indices(data, sidecar.labels)
        decoder = GpuTrain(path, sidecar, data, share, current_gpu())
    else:
        from data.torch_loader import SourceTrain

        source = open_training(data)
        pool = training_indices(data, source.labels)
        decoder = SourceTrain(source, data, share, workers, pin)
    return TrainBatches(decoder, pool, batch_size, seed, rank, processes, data.repeats)


def open_eval(
    data: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 2,
    pin: bool = False,
    split: str = "val",
    limit: int | None = None,
) -> EvalBatches:
    """Evaluation batches of at most `batch_size` images per process, of `limit` images of all classes or of all images.

    `split`: one of `data.splits(data)`. From the .beton file that holds it after the evaluation transform, if `data`
    says so and it is not the training set; else from the original images by Pillow. The pixels are the same. Raises
    DataError as `open_train` does.
    """
    check_loader(data)
    require_split(data, split)
    if data.eval_source not in ("beton", "original"):
        raise DataError(f"data.eval_source is {data.eval_source!r}; set it to beton or original.")
    decoder: EvalDecoder
    if data.loader != "torch" and data.eval_source == "beton" and split != "train":
        path, sidecar = ready(data, split)
        with ffcv_loader(data.loader) as ffcv:
            decoder = ffcv.BetonEval(path, sidecar, batch_size, workers, pin)
    else:
        from data.torch_loader import SourceEval

        decoder = SourceEval(open_source(data, split), data, batch_size, workers, pin)
    return EvalBatches(decoder, batch_size, rank, processes, limit)


def check_loader(data: DataConfig) -> None:
    """Raise DataError if there is no such loader."""
    if data.loader not in ("ffcv", "torch", "gpu"):
        raise DataError(f"There is no loader {data.loader!r}; set data.loader to ffcv, torch or gpu.")


@contextmanager
def ffcv_loader(loader: str = "ffcv") -> Iterator[ModuleType]:
    """The module that uses FFCV, imported only now.

    Raises DataError where FFCV is missing, with the remedy for the user's `loader`.

    FFCV sets torch's number of threads, on import and for every loader, which would change the order of sums in
    training: it is put back on leaving. It also starts numba's threads, which are of TBB if that is found: those
    complain when torch forks its workers.
    """
    threads = torch.get_num_threads()
    try:
        try:
            import numba

            numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]
            yield importlib.import_module("data.ffcv_loader")
        except ImportError as error:
            part, instead = FOR_FFCV[loader]
            raise DataError(NO_FFCV.format(loader, part, error, instead)) from error
    finally:
        torch.set_num_threads(threads)
