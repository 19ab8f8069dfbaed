"""What goes wrong with a backbone."""

from whtnet.errors import UserError


class BackboneError(UserError, ValueError):
    """A backbone that does not exist, or can't be built as asked."""
