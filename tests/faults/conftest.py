"""The command line in this process, as a user would call it."""

import sys

import pytest

from msfl_jax.cli import main


@pytest.fixture
def msfl(monkeypatch, capfd):
    """Exit code, stdout and stderr of `msfl ARGUMENTS`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["msfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capfd.readouterr()
        return stop.value.code or 0, out.out, out.err

    return run
