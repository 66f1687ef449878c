"""The one exception of the data wing that a user can cause."""


class DataError(ValueError):
    """A data set, file or setting that cannot be used; the message names it and the remedy."""
