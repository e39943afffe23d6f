"""Errors that a user is meant to read: one line each, and the exit code of the command that ends with it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


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


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk is full, or what a user may store on it: ArrayRecord says so in the text of other errors."""
    words = ("No space left on device", "Disk quota exceeded")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in words)


def no_space(folder: Path) -> RetryError:
    """The error of a full disk."""
    return RetryError(f"{folder}: no space left; free some and run the same command again, what is finished stays")


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Around what is written below a folder of the user's.

    Raises:
      RetryError: the disk is full.
      UserError: the folder cannot be written to for another reason.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise no_space(folder) from None
        why = error.strerror or type(error).__name__
        raise UserError(f"{folder}: cannot be written to ({why}); expected a folder that can") from None
