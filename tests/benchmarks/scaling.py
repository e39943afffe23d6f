"""Bytes that a device sends in one training step, on 1, 2, 4 and 8 devices: `python tests/benchmarks/scaling.py [--config demo]`.

The step is compiled for virtual CPU devices and not run: what is counted are the exchanges in the program, beside what the formula says must be
sent. No time is measured, because virtual devices share one processor.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import tempfile
from pathlib import Path

import jax

from msfl_jax.config_files import load_config
from msfl_jax.planner.cache import read_text
from msfl_jax.planner.compiler import compile_step
from msfl_jax.planner.costs import costs_of
from msfl_jax.planner.formulas import Parameters, sent_by_formula
from msfl_jax.planner.protocol import TooLarge
from msfl_jax.planner.traffic import KINDS

RING = ("objective.global_alignment.exchange=ring", "objective.local_alignment.exchange=ring")
VARIANTS = {
    "data": (),
    "data, moments split": ("mesh.shard_moments=True",),
    "fsdp": ("mesh.data=1", "mesh.fsdp=-1"),
    "data, gathered by hand": ("objective.global_alignment.exchange=gather",),
    "data, around a ring": RING,
    "data, groups of one device": ("objective.local_alignment.negatives=group({rows})",),
}


def main() -> None:
    """Prints a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="demo", help="name or path of a configuration of pretraining")
    parser.add_argument("--rows", type=int, default=8, help="studies per device")
    parser.add_argument("--vocabulary", type=int, default=244, help="words of the tokenizer")
    options = parser.parse_args()
    print(f"{options.config}, {options.rows} studies per device, MB that a device sends in a step\n")
    print(f"{'':28}devices" + "".join(f"{kind:>20}" for kind in KINDS) + f"{'all':>10}{'formula':>10}{'ratio':>8}")
    for name, overrides in VARIANTS.items():
        for devices in (1, 2, 4, 8):
            print(f"{name:28}{devices:7}" + line(options, overrides, devices), flush=True)


def line(options: argparse.Namespace, overrides: tuple[str, ...], devices: int) -> str:
    """What one program exchanges."""
    words = [word.format(rows=options.rows) for word in overrides] + [f"data.batch_size={options.rows * devices}"]
    config = load_config(options.config, [f"--config.{word}" for word in words])
    with tempfile.TemporaryDirectory() as folder:
        hlo = Path(folder) / "step.hlo"
        made = compile_step(config, options.vocabulary, jax.devices()[:devices], platform="cpu", hlo=hlo)
        assert not isinstance(made, TooLarge)
        costs = costs_of(read_text(hlo))
    sent = {kind: costs.sent(kind) / 1e6 for kind in KINDS}
    formula = sent_by_formula(config, made.mesh, Parameters(made.count, made.split))
    least = sum((formula or {}).values()) / 1e6
    ratio = f"{sum(sent.values()) / least:8.2f}" if least else f"{'-':>8}"
    return "".join(f"{value:20.3f}" for value in sent.values()) + f"{sum(sent.values()):10.3f}{least:10.3f}" + ratio


if __name__ == "__main__":
    main()
