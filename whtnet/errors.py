"""The one base of all errors that a user can mend: command lines print their message, without a traceback."""


class UserError(Exception):
    """Something in the settings, the data or the machine is not as it must be; the message says what to do."""


class JobFailedError(Exception):
    """A job of a sweep ended with an error that its user was told; no :class:`UserError`, for the others go on."""
