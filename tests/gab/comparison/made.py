"""Folders of runs that were never trained: records, configs and predictions with a known truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

IMAGES, EPOCHS = 500, 3


def made_run(
    folder: Path,
    *,
    seed: int = 0,
    gab: bool = False,
    base: str = "tiny",
    data: str = "made",
    score: float = 60.0,
    unfinished: bool = False,
    settings: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
    **end: float,
) -> Path:
    """A run whose top-1 is `score` (a multiple of 100 / IMAGES); its images depend on data set and seed alone.

    Args:
        settings: more of the config, flat; `start` and `end`: more of these rows.
    """
    folder.mkdir(parents=True)
    config = OmegaConf.create(
        {"model": {"base": base, "gab": gab}, "data": {"name": data}, "train": {"epochs": EPOCHS}, "seed": seed}
    )
    for key, value in (settings or {}).items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")
    right = np.arange(IMAGES) < round(score * IMAGES / 100)
    label = np.arange(IMAGES) % 10
    top5 = (np.where(right, label, label + 1)[:, None] + np.arange(5)) % 10
    loss = np.where(right, 0.5, 2.0).astype(np.float32)
    names = np.array([f"{data}/{i:04d}" for i in range(IMAGES)])
    np.savez(folder / "predictions.npz", image=names, label=label, top5=top5, log_loss=loss)
    scores = {"top1": 100 * right.mean(), "loss": float(loss.mean()), **end}
    weights = {"head": f"{seed:08x}", "blocks.0": f"{seed + 1:08x}"}
    sigma = {"sigma": [2.0, 3.0], "amplitude": [2.0, 2.0]} if gab else {}
    described = {"variant": base + "_gab" * gab, "parameters": 1000 + 2 * gab, "macs": 5_000_000}
    rows = [{"kind": "start", "epoch": 0, "eval_images": IMAGES, "weights": weights, **described, **(start or {})}]
    for epoch in range(1, EPOCHS + 1):
        seen = f"{seed * 10 + epoch:04x}"
        rows.append({"kind": "train", "epoch": epoch, "images_per_second": 100.0, "images_digest": seen, **sigma})
        rows.append({"kind": "eval", "epoch": epoch, **scores, "top1": scores["top1"] - EPOCHS + epoch, **sigma})
    rows.append({"kind": "eval" if unfinished else "end", "epoch": EPOCHS, **scores})
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made_arms(root: Path, scores: dict[bool, list[float]], name: str = "", **settings: Any) -> list[Path]:
    """Runs of seeds 0, 1, ... with and without the Gaussian, of these scores."""
    return [
        made_run(root / f"{name}{'gab' if gab else 'plain'}-{seed}", seed=seed, gab=gab, score=score, **settings)
        for gab, values in scores.items()
        for seed, score in enumerate(values)
    ]
