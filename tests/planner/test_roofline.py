"""Times from costs and rates that are round numbers."""

import pytest

from msfl_jax.chips import Chip
from msfl_jax.planner.costs import Costs, Work
from msfl_jax.planner.products import Product
from msfl_jax.planner.protocol import Rates
from msfl_jax.planner.roofline import ChipSpeed, MeasuredSpeed, copies_to_measure, products_to_measure, times_of
from msfl_jax.planner.traffic import Transfer

CHIP = Chip("x1", "X 1", "gpu", ("X",), peak=100.0, memory=1e3, usable=9e2, bandwidth=10.0, links=4.0, network=1.0)
LARGE = Product((8, 16), (16, 4), (1,), (0,), (), (), "f32")
SMALL = Product((2, 16), (16, 4), (1,), (0,), (), (), "f32")


def of(work, transfers=None):
    return Costs(work, transfers or {}, 0, 0)


def test_each_instruction_takes_the_slower_of_its_products_and_its_traffic():
    times = times_of(of({Work(200.0, 10.0): 3, Work(100.0, 40.0): 1}), ChipSpeed(CHIP, 8))
    assert times.compute == 3 * 2 + 1
    assert times.memory == 3 * 1 + 4
    assert times.step == 3 * 2 + 4
    assert times.network == 0
    assert times.bound == "compute"


def test_measured_rates_come_before_the_data_sheet():
    chip = Chip("x1", "X 1", "gpu", ("X",), peak=100.0, bandwidth=10.0, usable=1.0, links=1.0, product=50.0, copy=5.0)
    times = times_of(of({Work(200.0, 10.0): 1}), ChipSpeed(chip, 8), temporary=1e9)
    assert (times.compute, times.memory) == (4.0, 2.0)
    assert ChipSpeed(chip, 8).peak == 100.0


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        ("all-reduce", (0, 1, 2, 3), 2 * 8 * 3 / 4 / 4),  # over links
        ("all-reduce", (0, 1, 8, 9), 2 * 8 * 3 / 4 / 2),  # two cards of each machine carry it
        ("all-reduce", tuple(range(16)), 2 * 8 * 15 / 16 / 4),  # eight cards are more than the links
        ("collective-permute", (0, 1), 8 / 4),
        ("collective-permute", (0, 8), 8 / 1),
        ("all-to-all", tuple(range(16)), 8 * 15 / 16 / 1),
    ],
)
def test_exchanges_go_over_links_and_across_machines_over_the_network(kind, group, seconds):
    times = times_of(of({}, {Transfer(kind, 8.0, group): 1}), ChipSpeed(CHIP, 8))
    assert times.network == pytest.approx(seconds)
    assert times.step == times.network
    assert times.bound == "network"


def test_on_this_cpu_each_product_and_each_size_of_copy_has_its_own_rate():
    rates = Rates(products=(512.0, 64.0), copies=(100.0, 10.0), fresh=50.0, cores=1)
    speed = MeasuredSpeed.of([LARGE, SMALL], [1000, 4000], rates)
    assert LARGE.flops == 1024
    costs = of({Work(LARGE.flops, 640.0, (LARGE,)): 2, Work(0.0, 2000.0): 1, Work(0.0, 8000.0): 1, Work(0.0, 10.0): 1})
    times = times_of(costs, speed)
    assert times.compute == 2 * 2
    assert times.memory == pytest.approx(2000 / 100 + 8000 / 10 + 10 / 100)
    assert times.step == pytest.approx(times.compute + times.memory)
    assert speed.peak == 512.0
    assert times_of(costs, speed, 1000.0).step == pytest.approx(times.step + 1000 / 50)


def test_a_product_without_a_rate_takes_that_of_the_nearest_size():
    speed = MeasuredSpeed({LARGE: 512.0}, {1000: 100.0})
    assert speed.compute(Work(SMALL.flops, 0.0, (SMALL,))) == SMALL.flops / 512.0


def test_what_is_measured_is_most_of_the_step():
    costs = of({Work(LARGE.flops, 1.0, (LARGE,)): 1000, Work(SMALL.flops, 1.0, (SMALL,)): 1, Work(0.0, 3e6): 1})
    assert products_to_measure(costs) == [LARGE]
    assert products_to_measure(costs, share=1.0) == [LARGE, SMALL]
    sizes = copies_to_measure(costs)
    assert sizes[0] == 4096
    assert 3e6 <= sizes[-1] < 4 * 3e6 + 1
