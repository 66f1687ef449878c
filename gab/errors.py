"""The one exception of the tensor wing that a user can cause."""


class UserError(ValueError):
    """A setting, checkpoint or model that cannot be used; the message names it and the remedy."""
