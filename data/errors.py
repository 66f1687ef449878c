"""The one exception of the data wing that a user can cause."""

from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """A data set, file or setting that cannot be used; the message names it and the remedy."""


@contextmanager
def root_is(option: str) -> Iterator[None]:
    """Within, sentences that would name `data.root` name `option`, by which the user gives that folder here."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("data.root", option)) from error
