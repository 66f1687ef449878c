"""Trained networks for others: folders that timm loads, model cards, ONNX files."""

from gab.export.card import Weights, card
from gab.export.folder import save
from gab.export.onnx_file import save_onnx

__all__ = ["Weights", "card", "save", "save_onnx"]
