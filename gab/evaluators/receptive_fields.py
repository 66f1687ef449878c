"""Effective receptive fields as an evaluator: the same measurement in training and by `eval.py`."""

from typing import Any

import numpy as np
import torch
from torch import nn

from gab.config import ErfConfig
from gab.errors import UserError
from gab.evaluators import erf_figures
from gab.evaluators.base import Conditions, Images, Result
from gab.evaluators.erf import Measurement, ReceptiveField, choose_targets
from gab.evaluators.erf_table import radial_rows, rows, summary
from gab.evaluators.frozen import frozen
from gab.evaluators.readouts import Probe
from gab.tracking.figure_files import save
from gab.training.interfaces import EvalBatches


class ReceptiveFields:
    """Measures the field over the images, in float32 whatever the precision of the others; writes maps and figures.

    Numbers: R² and σ (pixels) of the Gaussian, least areas that hold 20, 30, 50 and 99 % of the mass (percent of the
    pixels), the share in the target patch itself (percent) and the relative standard error; means over the targets.
    """

    def __init__(self, settings: ErfConfig):
        self.settings = settings

    def check(self, model: nn.Module, image_size: int) -> None:
        """Raise UserError, before anything takes long, where the layer or the target is not in the network."""
        probe = Probe(model, self.settings.layer, self.settings.readout)
        images = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
        with frozen(model), torch.no_grad():
            height, width = probe(images).shape[1:]
        choose_targets(self.settings.target, (height, width))

    def __call__(self, model: nn.Module, images: Images, conditions: Conditions) -> Result:
        field = self.measure(model, images(), conditions)
        return Result(summary(field), field.count, write(field, conditions))

    def measure(self, model: nn.Module, batches: EvalBatches, conditions: Conditions) -> ReceptiveField:
        """The field over the images of all processes, in all of them."""
        processes, chosen = conditions.processes, self.settings
        measurement = Measurement(model, target=chosen.target, layer=chosen.layer, readout=chosen.readout)

        def take(batch: Any) -> None:
            images = batch.images.to(processes.device, non_blocking=True)
            for part in images.split(chosen.batch_size):
                measurement.add(conditions.prepare(part).float())

        conditions.visit(batches, "erf", take)
        shares = [share for share in processes.gather_objects(measurement.field) if share is not None]
        if not shares:
            raise UserError("a receptive field needs images, and there are none")
        field = shares[0]
        for share in shares[1:]:
            field.merge(share)
        return field


def write(field: ReceptiveField, conditions: Conditions) -> list:
    """The numbers as CSV, the maps as arrays, the figures."""
    files = conditions.tables(erf=rows(field), radial_mass=radial_rows(field))
    if path := conditions.file("erf.npz"):
        np.savez_compressed(path, maps=field.maps, standard_errors=field.standard_errors, targets=field.targets)
        files.append(path)
    if path := conditions.figure("erf"):
        files += save(erf_figures.compare_fields({"effective receptive field": field}), path)
    if len(field.targets) > 1 and (path := conditions.figure("erf_targets")):
        files += save(erf_figures.all_targets(field), path)
    return files
