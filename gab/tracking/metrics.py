"""What a dashboard shows of a record: its rows, numbered, under the dashboard's names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gab.tracking.record import Row, parse

AXES = ("epoch", "step", "samples", "gpu_hours")  # the same for every kind of row
PER_LAYER = ("sigma", "amplitude")
BEST = tuple(  # summarised by their highest and their last value
    f"eval/{score}{weights}" for score in ("top1", "mean_per_class") for weights in ("", "_ema")
)


class DashboardRows:
    """The rows of a record that a dashboard shows: all but the start rows, of a file that may still grow.

    Their numbers are stable: a run that was stopped and goes on writes the same rows again. So row n is step n of W&B,
    whatever happened in between.
    """

    def __init__(self, record: Path) -> None:
        self.best: dict[str, dict[str, float]] = {}  # `max` and `last` of the metrics in BEST
        self._record = record
        self._starts: list[int] = []  # where each row begins in the file, bytes
        self._end = 0  # of what was read

    def count(self) -> int:
        """How many there are now: reads what was added to the file since the last call.

        A broken last line does not count yet, as in `gab.tracking.record.read`.

        Raises:
            ValueError: another line is broken.
        """
        with self._record.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                try:
                    row = parse(line)
                except ValueError:
                    if file.read(1):
                        raise
                    break
                if row["kind"] != "start":
                    self._starts.append(self._end)
                    self._update_best(metrics(row))
                self._end += len(line)
        return len(self._starts)

    def __getitem__(self, number: int) -> Row:
        with self._record.open("rb") as file:
            file.seek(self._starts[number])
            return parse(file.readline())

    def _update_best(self, values: dict[str, float]) -> None:
        for name in BEST:
            if name in values:
                highest = self.best.get(name, {}).get("max", values[name])
                self.best[name] = {"max": max(highest, values[name]), "last": values[name]}


def metrics(row: Row) -> dict[str, float]:
    """The numbers of a row under the dashboard's names; what was not measured (null) is left out.

    `loss` of a train row is `train/loss`, of an eval row `eval/loss`; `sigma` of the first layer is `sigma/layer_01`,
    or `sigma/layer_01/head_01` ... where the row has a list per layer. |sigma| is shown: only its square has a meaning.
    """
    values: dict[str, float] = {}
    for field, value in row.items():
        if field in PER_LAYER:
            values.update(_per_layer(field, value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[field if field in AXES else f"{row['kind']}/{field}"] = value
    return values


def _per_layer(field: str, layers: list[Any] | None) -> Iterator[tuple[str, float]]:
    shown = abs if field == "sigma" else float
    for layer, value in enumerate(layers or [], start=1):
        key = f"{field}/layer_{layer:02d}"
        if isinstance(value, list):
            yield from ((f"{key}/head_{head:02d}", shown(item)) for head, item in enumerate(value, start=1))
        elif value is not None:
            yield key, shown(value)
