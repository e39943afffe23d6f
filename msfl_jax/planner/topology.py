"""Names of machines, as `v5p:8x8x8`: which chip, how many, and how JAX calls them."""

import dataclasses
import math
import re
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.chips import Chip, Platform, load_chips
from msfl_jax.config_build import nearest

EXAMPLES = "v5e:16x16, v5p:8x8x8, v6e:16x16, h200:8x8 (machines x GPUs of each) or cpu"
LOCAL = "cpu"
# Axes of the wiring that a slice of these TPUs has.
_AXES = {"v5e": 2, "v6e": 2, "v5p": 3}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are wired together.

    Attributes:
      name: as given.
      chip: of the table; None for this machine's CPU.
      shape: chips along each axis; machines and GPUs of each for GPUs.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Chips of all machines; a CPU is one."""
        return math.prod(self.shape)

    @property
    def platform(self) -> Platform:
        """Whose compiler is needed."""
        return self.chip.platform if self.chip else "cpu"

    @property
    def per_machine(self) -> int:
        """Chips that reach each other over links; all for a TPU slice."""
        return self.shape[-1] if self.platform == "gpu" else self.devices


def parse_topology(name: str) -> Topology:
    """The machines behind a name.

    Raises:
      UserError: the chip is not in the table or not known well enough, or the sizes are none of its kind.
    """
    if name == LOCAL:
        return Topology(name, None, (1,))
    key, _, sizes = name.partition(":")
    known = {key: chip for key, chip in load_chips().items() if chip.known}
    if key not in known:
        raise UserError(f"--topology {name}: no chip '{key}'{nearest(key, known)}; expected such as {EXAMPLES}")
    axes = _AXES.get(key, 2)
    if not re.fullmatch(r"[1-9]\d{0,4}" + r"x[1-9]\d{0,4}" * (axes - 1), sizes):
        raise UserError(f"--topology {name}: found sizes '{sizes}'; expected {axes} numbers, such as {EXAMPLES}")
    return Topology(name, known[key], tuple(int(size) for size in sizes.split("x")))


def devices_of(topology: Topology) -> list[Any]:
    """The devices as JAX has them, without a machine that has any; imports JAX.

    Raises:
      UserError: the compiler knows no such machines.
    """
    import jax
    from jax.experimental import topologies

    if topology.chip is None:
        return jax.devices("cpu")[:1]
    name, options = topology.name, {}
    if topology.platform == "gpu":
        hosts, gpus = topology.shape
        name = topology.chip.key
        options = {"target_config": topology.chip.target, "topology": f"{hosts}x1x{gpus}"}
    platform = "cuda" if topology.platform == "gpu" else topology.platform
    try:
        return list(topologies.get_topology_desc(name, platform=platform, **options).devices)
    except Exception as error:  # the compilers' own errors have no common type
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology {topology.name}: the compiler knows no such machines ({reason})") from error
