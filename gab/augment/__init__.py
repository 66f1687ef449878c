"""Augmentation of whole batches on the device, every draw a function of (seed, epoch or step, sample or group)."""

from gab.augment.batch import Augment, Drawn, Targets, normalize

__all__ = ["Augment", "Drawn", "Targets", "normalize"]
