"""How the observer of a run ends."""

from contextlib import suppress
from pathlib import Path

import pytest

from gab.errors import STOPPED, Stopped, UserError
from gab.tracking.config import TrackingConfig
from gab.tracking.observer import Observer

ENDS = [(None, 0), (UserError("no images"), 1), (KeyboardInterrupt(), 1), (Stopped(15, "at step 1"), STOPPED)]


@pytest.mark.parametrize(("error", "code"), ENDS, ids=["well", "error", "interrupt", "signal"])
def test_the_dashboard_is_told_how_the_run_ended(
    error: BaseException | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Observer(
        tmp_path, TrackingConfig(), {}, variant="vit", seed=0, epochs=1, steps_per_epoch=1, step=0, best=-1.0,
        position=0, wandb_id=None, active=False,
    )  # fmt: skip
    told: list[int] = []
    monkeypatch.setattr(observer.mirror, "finish", told.append)
    with suppress(BaseException), observer:
        if error:
            raise error
    assert told == [code]
