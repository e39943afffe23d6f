"""The largest batch, found with a compiler whose memory is known."""

import math

import pytest

from msfl_jax.planner.largest import MOST, Measured, largest_batch

GB = 1e9
FIXED = 3 * GB


class Compiler:
    """Counts what it compiles; `memory` of a batch in bytes, beyond the limit it refuses, with or without a number."""

    def __init__(self, memory, limit, *, says=True):
        self.memory, self.limit, self.says, self.asked = memory, limit, says, []

    def __call__(self, batch):
        self.asked.append(batch)
        peak = self.memory(batch)
        fits = peak <= self.limit
        return Measured(batch, peak if fits or self.says else math.nan, fits, FIXED)


def linear(batch):
    return FIXED + batch * 1e6


def curved(batch):
    return FIXED + batch * 1e6 + batch**2 * 20.0


def find(compiler, start, granule=256, **options):
    found = largest_batch(compiler, start=start, granule=granule, limit=compiler.limit, **options)
    assert len(compiler.asked) == len(set(compiler.asked)) <= 4
    assert [one.batch for one in found.tried] == sorted(compiler.asked)
    return found


@pytest.mark.parametrize("start", [4096, 32768])
def test_a_line_finds_it_in_three(start):
    compiler = Compiler(linear, 60 * GB)
    found = find(compiler, start)
    assert found.final
    assert 57000 * 0.95 < found.batch <= 57000
    assert found.batch % 256 == 0
    assert len(compiler.asked) == 3


def test_two_configured_batches_share_what_is_compiled():
    small, large = (Compiler(linear, 60 * GB) for _ in range(2))
    assert find(small, 4096).batch == find(large, 32768).batch
    assert sorted(small.asked) == sorted(large.asked)


@pytest.mark.parametrize("says", [True, False], ids=["with a number", "without"])
@pytest.mark.parametrize("start", [1024, 4096, 32768])
def test_what_is_found_on_a_curve_fits(start, says):
    compiler = Compiler(curved, 16 * GB, says=says)
    found = find(compiler, start)
    true = (-1e6 + math.sqrt(1e12 + 4 * 20.0 * 13 * GB)) / 40
    assert 0.5 * true < found.batch <= true
    if says:
        assert found.final
        assert found.batch > 0.75 * true


def test_a_configured_batch_that_does_not_fit_leads_to_a_smaller_one():
    found = find(Compiler(linear, 16 * GB), 32768)
    assert found.final
    assert 0.8 * 13000 < found.batch <= 13000


@pytest.mark.parametrize("said", [16.5 * GB, math.nan])
def test_what_a_compiler_says_when_it_gives_up_is_no_point_of_the_line(said):
    """Measured on libtpu: a batch of 32,768 was refused with less than 28,672 took, and half of what fits was found."""

    def measure(batch):
        if batch > 30000:
            return Measured(batch, said, False, refused=True)
        return Measured(batch, linear(batch), linear(batch) <= 16 * GB, FIXED)

    found = largest_batch(measure, start=32768, granule=256, limit=16 * GB)
    assert found.final
    assert 0.8 * 13000 < found.batch <= 13000
    assert len(found.tried) == 3


def test_parameters_that_do_not_fit_are_found_out_in_two():
    compiler = Compiler(linear, 2 * GB)
    found = find(compiler, 32768)
    assert (found.batch, found.final) == (0, True)
    assert len(compiler.asked) == 2


def test_one_row_of_a_chip_that_does_not_fit_is_compiled_once():
    compiler = Compiler(linear, 2 * GB)
    assert find(compiler, 256).batch == 0
    assert compiler.asked == [256]


def test_memory_without_end_ends_at_a_whole_data_set():
    found = find(Compiler(lambda batch: FIXED + batch, 60 * GB), 4096)
    assert (found.batch, found.final) == (MOST, True)
    found = find(Compiler(lambda batch: FIXED, 60 * GB), 4096)
    assert (found.batch, found.final) == (MOST, True)


def test_with_fewer_tries_the_largest_that_fits_so_far_is_not_final():
    found = find(Compiler(linear, 60 * GB), 4096, tries=2)
    assert (found.batch, found.final) == (32768, False)
