"""What can be wrong with data."""

from whtnet.errors import UserError


class DatasetError(UserError, ValueError):
    """A data set, or a setting of it, that can't be."""


class DatasetNotFoundError(UserError, RuntimeError):
    """Data that is neither here nor could be downloaded; the message says where it was looked for and what to do."""
