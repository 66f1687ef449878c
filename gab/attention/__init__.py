"""Attention with a learned additive bias: one operation, several ways to compute it."""

from gab.attention.biased import BACKENDS, biased_attention

__all__ = ["BACKENDS", "biased_attention"]
