"""The command line in this process, as a user would call it."""

import math
import sys

import pytest

from input_pipeline import progress
from msfl_jax.cli import main


@pytest.fixture
def msfl(monkeypatch, capfd):
    """Exit code, stdout and stderr of `msfl ARGUMENTS`."""
    # However slow the machine, no count of what was read so far stands among the lines of an error.
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", math.inf)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["msfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capfd.readouterr()
        return stop.value.code or 0, out.out, out.err

    return run
