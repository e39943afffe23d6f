"""What the tests of weights in and out share."""

import functools

import pytest

from msfl_jax.export.writer import export_run

from .models import make, random_params
from .runs import run_of, tokenizer_in


@pytest.fixture(scope="session")
def wide():
    """A model of B/16's width."""
    return make()


@pytest.fixture(scope="session")
def params(wide):
    """Its weights; not to be changed."""
    return random_params(wide)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """By the name of a configuration of `runs`: the run, its export, and what `export_run` said. All that can leave leaves."""
    tokenizer = tokenizer_in(tmp_path_factory.mktemp("run") / "tokenizer")

    @functools.cache
    def make(name):
        run = run_of(name, tokenizer)
        target = tmp_path_factory.mktemp(name) / "export"
        said = export_run(run, target, decoders=True, mlm_head=True, to_stablehlo=name in ("demo", "global"))
        return run, target, said

    return make
