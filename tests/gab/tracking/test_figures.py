from pathlib import Path

import numpy as np
import pytest

from gab.tracking.figures import bias_over_time, draw, top1_curve
from gab.tracking.record import Row

LAYERS = 4


def rows(epochs: int, heads: int | None = None, gaussian: bool = True, ema: bool = True) -> list[Row]:
    """A record of a run whose layer k has σ = -(5 + k epoch / 10) and A = 2 - k epoch / 100."""
    found: list[Row] = [{"kind": "train", "epoch": 0.5, "loss": 1.0}]
    shape = (LAYERS, 1 if heads is None else heads)
    layer = np.broadcast_to(np.arange(LAYERS)[:, None], shape).squeeze(1 if heads is None else ())
    for epoch in range(epochs + 1):
        row: Row = {"kind": "eval" if epoch else "start", "epoch": epoch, "sigma": None, "amplitude": None}
        if epoch:
            row |= {"top1": 50.0 + epoch, "top1_ema": 40.0 + epoch if ema else None}
        if gaussian:
            row["sigma"] = (-(5 + layer * epoch / 10)).tolist()
            row["amplitude"] = (2 - layer * epoch / 100).tolist()
        found.append(row)
    return found


def layer_lines(axes) -> list:
    return [line for line in axes.lines if line.get_label().startswith("layer ")]


def test_files(tmp_path: Path) -> None:
    files = draw(rows(3), tmp_path / "figures")
    names = ["top1.png", "top1.pdf", "bias_over_time.png", "bias_over_time.pdf"]
    assert [file.name for file in files] == names
    assert all(file.stat().st_size > 5000 for file in files)


def test_a_run_without_gaussians_has_no_bias_figure(tmp_path: Path) -> None:
    assert [file.name for file in draw(rows(2, gaussian=False), tmp_path)] == ["top1.png", "top1.pdf"]


def test_an_empty_record_has_no_figures(tmp_path: Path) -> None:
    assert draw([], tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_top1_of_raw_and_ema_weights() -> None:
    (axes,) = top1_curve(rows(3)).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[51, 52, 53], [41, 42, 43]]
    assert [line.get_label() for line in axes.lines] == ["weights: 53.00 %", "EMA of the weights: 43.00 %"]
    assert axes.get_ylabel() == "top-1 accuracy (%)"
    (axes,) = top1_curve(rows(3, ema=False)).axes
    assert len(axes.lines) == 1


@pytest.mark.parametrize("heads", [None, 1, 3])
def test_change_of_every_layer_from_its_start(heads: int | None) -> None:
    sigma, amplitude, _colour_bar = bias_over_time(rows(10, heads)).axes
    assert len(layer_lines(sigma)) == len(layer_lines(amplitude)) == LAYERS
    assert len(sigma.lines) == 1 + LAYERS + (LAYERS * heads if heads and heads > 1 else 0)  # the first: zero
    for layer in range(LAYERS):
        np.testing.assert_allclose(layer_lines(sigma)[layer].get_ydata(), layer * np.arange(11) / 10, atol=1e-12)
        np.testing.assert_allclose(layer_lines(amplitude)[layer].get_ydata(), -layer * np.arange(11) / 100, atol=1e-12)
    assert "patches" in sigma.get_ylabel()
    assert sigma.get_title() == "σ: started at 5"


def test_one_evaluation_draws(tmp_path: Path) -> None:
    assert len(draw(rows(1)[2:], tmp_path)) == 4


def test_colours_of_layers_differ() -> None:
    colours = {line.get_color() for line in layer_lines(bias_over_time(rows(1)).axes[0])}
    assert len(colours) == LAYERS
