"""What the decoder of every loader hands to `data.batches`."""

from typing import NamedTuple

import numpy as np
import torch

NO_CROPS = np.empty((0, 6), np.int32)


class Decoded(NamedTuple):
    """A batch of decoded samples."""

    images: torch.Tensor  # uint8 (b, 3, S, S)
    labels: torch.Tensor  # int64 (b,)
    indices: np.ndarray  # int64 (b,), sample keys in training
    crops: (
        np.ndarray
    )  # int32 (b, 5 or more), columns of `data.order`; no rows in evaluation. As drawn; ffcv: as applied
