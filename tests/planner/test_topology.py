"""Names of machines, and the table of chips."""

import json

import pytest

from input_pipeline.errors import UserError
from msfl_jax.chips import FILE, NUMBERS, load_chips, peak_of
from msfl_jax.planner.topology import parse_topology

TABLE = json.loads(FILE.read_text())


def test_every_chip_has_what_it_needs_and_every_number_a_source():
    assert set(TABLE) == {"about", "chips"}
    for key, row in TABLE["chips"].items():
        assert {"name", "platform", "device_kinds", "peak"} <= set(row), key
        assert set(row) <= {"name", "platform", "device_kinds", "target", *NUMBERS}, key
        assert row["platform"] in ("tpu", "gpu")
        assert row["device_kinds"]
        for name in NUMBERS:
            if name in row:
                assert set(row[name]) == {"value", "source"}, f"{key} {name}"
                assert row[name]["value"] > 0
                assert len(row[name]["source"]) > 10


def test_no_two_chips_share_a_name():
    kinds = [kind for chip in load_chips().values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


def test_what_can_be_planned_for_has_its_memory_and_rates_in_order():
    known = {key: chip for key, chip in load_chips().items() if chip.known}
    assert set(known) == {"v5e", "v5p", "v6e", "h200"}
    for chip in known.values():
        assert chip.memory is not None
        assert 0.8 * chip.memory < chip.usable <= 1.01 * chip.memory
        assert (chip.product or 0) <= chip.peak
        assert (chip.copy or 0) <= chip.bandwidth
        assert bool(chip.target) == (chip.platform == "gpu")


def test_the_longest_name_of_a_device_counts():
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("cpu") is None


def test_names_of_machines():
    slice_ = parse_topology("v5p:8x8x8")
    assert (slice_.devices, slice_.platform, slice_.per_machine) == (512, "tpu", 512)
    cluster = parse_topology("h200:8x4")
    assert (cluster.devices, cluster.platform, cluster.per_machine) == (32, "gpu", 4)
    here = parse_topology("cpu")
    assert (here.devices, here.platform, here.chip) == (1, "cpu", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5x:16x16", ["no chip 'v5x'", "did you mean 'v5"]),
        ("a100:8x8", ["no chip 'a100'", "h200:8x8"]),
        ("v5e", ["sizes ''", "2 numbers"]),
        ("v5e:16", ["sizes '16'", "2 numbers"]),
        ("v5p:8x8", ["sizes '8x8'", "3 numbers"]),
        ("v6e:0x16", ["sizes '0x16'"]),
        ("v6e:16x16;rm", ["sizes '16x16;rm'"]),
        ("cpu:8", ["no chip 'cpu'"]),
    ],
)
def test_other_names_are_refused_in_one_line(name, words):
    with pytest.raises(UserError) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)
    for word in [name, *words]:
        assert word in str(error.value)
