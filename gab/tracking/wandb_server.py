"""W&B's client, made quiet, and what W&B's server says that it has of a run."""

import os
from dataclasses import dataclass
from typing import Any

SAMPLES = 500  # rows of a run that are compared


@dataclass(frozen=True)
class ServerRun:
    """One run as the server has it.

    Attributes:
        rows: one more than the last step, which is the number of rows where none is missing or doubled.
        lines: rows that it was sent.
        sample: the optimiser step of some rows, by their number.
        state: running, finished, failed, crashed ...
        url: of its page.
    """

    rows: int = 0
    lines: int = 0
    sample: tuple[tuple[int, int], ...] = ()
    state: str = ""
    url: str = ""


def client() -> Any:
    """The module `wandb`, imported here only, with our defaults for what is set by the environment alone."""
    # Honoured from 0.31 on; as a setting, older versions would refuse it. Unflushed rows are lost when a run is killed.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    # W&B's reports on itself would hold up the end of the process, and fill the screen, when the server is gone.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def ask(entity: str | None, project: str, run_id: str, *, timeout: int = 20) -> ServerRun:
    """The run on the server; an empty one if there is none.

    Args:
        entity: user or team; None for the default of the account.
        timeout: seconds for each of three or four requests.

    Raises:
        Exception: whatever W&B's client raises when the server does not answer or refuses.
    """
    api = client().Api(timeout=timeout)
    try:
        run: Any = api.run(f"{entity or api.default_entity}/{project}/{run_id}")
    except Exception as error:  # its class has changed between versions
        if "could not find" in str(error).lower():
            return ServerRun()
        raise
    history = run.history(samples=SAMPLES, keys=["step"], pandas=False)
    return ServerRun(
        rows=run.lastHistoryStep + 1,
        lines=run.historyLineCount,
        sample=tuple((row["_step"], row["step"]) for row in history),
        state=run.state,
        url=run.url,
    )
