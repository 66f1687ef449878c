"""Files and images: from a data set to batches of uint8 tensors. Knows nothing of models."""

from data.batches import Batch, EvalBatches, TrainBatches, open_eval, open_train
from data.config import CropConfig, DataConfig, WriteConfig
from data.errors import DataError
from data.info import DataInfo, fingerprint, inspect
from data.prepare import prepare
from data.splits import may_share, splits, validates_on_test

__all__ = [
    "Batch",
    "CropConfig",
    "DataConfig",
    "DataError",
    "DataInfo",
    "EvalBatches",
    "TrainBatches",
    "WriteConfig",
    "fingerprint",
    "inspect",
    "may_share",
    "open_eval",
    "open_train",
    "prepare",
    "splits",
    "validates_on_test",
]
