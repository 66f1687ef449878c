"""What tests of several processes share."""

import pytest

from gab.distributed import launch


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that `launch` starts are forked from the tests' own, at once; they must not call backward."""
    monkeypatch.setattr(launch, "START", "fork")
