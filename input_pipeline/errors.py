"""Errors that a user is meant to read: one line each, and the exit code of the command that ends with it."""


class MsflError(Exception):
    """A one-line message (found, expected, what to do).

    Attributes:
      exit_code: what the command returns.
      code: one word for the kind of fault, by which `msfl data doctor` counts those of tables.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, code: str = "bad_row"):
        super().__init__(message)
        self.code = code


class UserError(MsflError):
    """A wrong path, option, column or configuration."""

    exit_code = 2


class DataError(MsflError):
    """Data that was read and refused."""

    exit_code = 3


class CheckpointError(MsflError):
    """A checkpoint or a tokenizer that is damaged or does not belong to this run."""

    exit_code = 4


class DivergedError(MsflError):
    """Training whose loss is no longer a number."""

    exit_code = 5


class RetryError(MsflError):
    """Nothing is wrong with the input: try again (preempted, disk full, a peer lost)."""

    exit_code = 75
