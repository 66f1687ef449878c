"""Augmentation of whole batches on the device, every draw a function of (seed, epoch or step, sample or group)."""

from gab.augment.batch import Augment, Targets, mixed_cross_entropy, normalize

__all__ = ["Augment", "Targets", "mixed_cross_entropy", "normalize"]
