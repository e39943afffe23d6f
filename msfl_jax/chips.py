"""The one table of accelerators, `planner/chips.json`: how fast they are and how much they hold, every number with its source."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Platform = Literal["tpu", "gpu", "cpu"]

FILE = Path(__file__).parent / "planner" / "chips.json"
# What a chip may have a number for, each with its source; all but the first may be missing.
NUMBERS = ("peak", "memory", "usable", "bandwidth", "links", "network", "product", "copy")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator; numbers are FLOP/s, bytes and bytes/s, None where they are not known.

    Attributes:
      key: what `--topology` calls it.
      name: for people.
      device_kinds: beginnings of `jax.Device.device_kind`.
      peak: of dense bfloat16 products, by data sheet.
      memory, usable: all of it, and what a program may have of it.
      bandwidth: of memory, by data sheet.
      links: sent over all links to neighbours, one way.
      network: sent to other machines, one way; None where links are all there is.
      product, copy: measured rates of large products and large copies.
      target: what the compiler is told of a GPU that is not there.
    """

    key: str
    name: str
    platform: Platform
    device_kinds: tuple[str, ...]
    peak: float
    memory: float | None = None
    usable: float | None = None
    bandwidth: float | None = None
    links: float | None = None
    network: float | None = None
    product: float | None = None
    copy: float | None = None
    target: str = ""

    @property
    def known(self) -> bool:
        """Whether enough is known to plan for it."""
        return None not in (self.usable, self.bandwidth, self.links)


@functools.cache
def load_chips() -> Mapping[str, Chip]:
    """All chips of the table by key."""
    table = json.loads(FILE.read_text())["chips"]
    return {key: _chip(key, row) for key, row in table.items()}


def peak_of(device_kind: str) -> float | None:
    """Dense bfloat16 peak in FLOP/s of a `jax.Device.device_kind`; None for one that is not in the table."""
    kinds = {kind: chip for chip in load_chips().values() for kind in chip.device_kinds}
    fitting = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(fitting, key=len)].peak if fitting else None


def _chip(key: str, row: Mapping[str, Any]) -> Chip:
    numbers: dict[str, Any] = {name: float(row[name]["value"]) for name in NUMBERS if name in row}
    words = {"name": row["name"], "platform": row["platform"], "device_kinds": tuple(row["device_kinds"])}
    return Chip(key=key, target="\n".join(row.get("target", ())), **words, **numbers)
