"""What the tests of weights in and out share."""

import functools

import pytest

from msfl_jax.export.writer import export_run

from .models import make, random_params, tiny
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
def model():
    """A model of a few thousand weights, which reads every format."""
    return tiny(image__target_scale=2)


@pytest.fixture(scope="session")
def small(model):
    """Its weights; not to be changed."""
    return random_params(model)


@pytest.fixture(scope="session")
def runs_by_name(tmp_path_factory):
    """Runs of the configurations of `runs`, which were never trained."""
    tokenizer = tokenizer_in(tmp_path_factory.mktemp("run") / "tokenizer")
    return functools.cache(lambda name: run_of(name, tokenizer))


@pytest.fixture(scope="session")
def exported(runs_by_name, tmp_path_factory):
    """By name: the run, its export, and what `export_run` said. All that can leave leaves."""

    @functools.cache
    def make(name):
        target = tmp_path_factory.mktemp(name) / "export"
        return runs_by_name(name), target, export_run(runs_by_name(name), target, decoders=True, mlm_head=True)

    return make
