"""How long a step takes a chip that does one thing after the other, each as fast as its products, its memory or its links allow."""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from msfl_jax.chips import Chip
from msfl_jax.planner.costs import Costs, Work
from msfl_jax.planner.products import Product
from msfl_jax.planner.protocol import Rates
from msfl_jax.planner.traffic import Transfer

Bound = Literal["compute", "memory", "network"]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step.

    Attributes:
      compute, memory, network: all products, all traffic of the chip's memory and all exchanges, each as if it were alone.
      step: predicted. Instructions follow each other, each as slow as the slower of its products and its traffic, and exchanges hide behind nothing.
    """

    compute: float
    memory: float
    network: float
    step: float

    @property
    def bound(self) -> Bound:
        """Which of the three takes longest."""
        times: dict[Bound, float] = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


@dataclasses.dataclass(frozen=True)
class ChipSpeed:
    """A chip of the table by what was measured of it, else by its data sheet; `per_machine` chips reach each other over links."""

    chip: Chip
    per_machine: int

    @property
    def peak(self) -> float:
        """By data sheet."""
        return self.chip.peak

    def compute(self, work: Work) -> float:
        """All products at one rate."""
        return work.flops / (self.chip.product or self.chip.peak)

    def memory(self, work: Work) -> float:
        """All traffic at one rate."""
        return work.moved / (self.chip.copy or self.chip.bandwidth or math.nan)

    def fresh(self, size: float) -> float:
        """Memory is there before the first step."""
        return 0.0

    def network(self, transfer: Transfer) -> float:
        """Over links; across machines over the network, which rings enter and leave once per machine, so that all its chips' cards carry a part."""
        links, network = self.chip.links or math.nan, self.chip.network
        machines = {number // self.per_machine for number in transfer.group}
        if network is None or len(machines) == 1:
            return transfer.sent / links
        ring = transfer.kind in ("all-reduce", "all-gather", "reduce-scatter")
        beside = len(transfer.group) // len(machines) if ring else 1
        return transfer.sent / min(links, network * beside)


@dataclasses.dataclass(frozen=True)
class MeasuredSpeed:
    """This CPU: FLOP/s of each product that the step takes, bytes/s by the bytes that an instruction moves, and bytes/s of filling new memory."""

    products: Mapping[Product, float]
    copies: Mapping[int, float]
    filled: float = math.inf

    @classmethod
    def of(cls, wanted: list[Product], sizes: list[int], rates: Rates) -> "MeasuredSpeed":
        """From what was asked for and what was answered."""
        products, copies = zip(wanted, rates.products, strict=True), zip(sizes, rates.copies, strict=True)
        return cls(dict(products), dict(copies), rates.fresh)

    @property
    def peak(self) -> float:
        """The fastest product of the step."""
        return max(self.products.values())

    def compute(self, work: Work) -> float:
        """Each product at the rate that was measured for it, or for the one most like it in size."""
        return sum((product.flops / self._rate(product) for product in work.products), 0.0)

    def memory(self, work: Work) -> float:
        """At the rate of a copy of its size; what a product reads and writes is in the product's own rate."""
        return 0.0 if work.products or not work.moved else work.moved / self._copy_rate(work.moved)

    def fresh(self, size: float) -> float:
        """Each step asks the system for its temporary arrays and gives them back."""
        return size / self.filled

    def network(self, transfer: Transfer) -> float:
        """One device sends nothing."""
        return 0.0

    def _rate(self, product: Product) -> float:
        if product in self.products:
            return self.products[product]
        nearest = min(self.products, key=lambda one: abs(math.log(max(one.flops, 1) / max(product.flops, 1))))
        return self.products[nearest]

    def _copy_rate(self, moved: float) -> float:
        """Between sizes that were measured, the rate of the nearest smaller one, so that caches are not counted on twice."""
        sizes = sorted(self.copies)
        return self.copies[sizes[max(bisect.bisect_right(sizes, moved) - 1, 0)]]


Speed = ChipSpeed | MeasuredSpeed


def times_of(costs: Costs, speed: Speed, temporary: float = 0.0) -> Times:
    """Seconds of a step with these costs, and so many bytes of temporary arrays, on a chip of this speed."""
    compute, memory = 0.0, speed.fresh(temporary)
    step = memory
    for work, count in costs.work.items():
        products, traffic = speed.compute(work), speed.memory(work)
        compute += count * products
        memory += count * traffic
        step += count * max(products, traffic)
    network = sum((count * speed.network(one) for one, count in costs.transfers.items()), 0.0)
    return Times(compute, memory, network, step + network)


def products_to_measure(costs: Costs, share: float = 0.98, most: int = 48) -> list[Product]:
    """The products that make up this share of a step's FLOPs, at most so many, largest part first."""
    parts = sorted(costs.products.items(), key=lambda item: -item[0].flops * item[1])
    total, chosen, reached = sum(one.flops * count for one, count in parts), [], 0.0
    for product, count in parts[:most]:
        if reached >= share * total:
            break
        chosen.append(product)
        reached += product.flops * count
    return chosen


def copies_to_measure(costs: Costs) -> list[int]:
    """Sizes in bytes, four times apart, that reach over what a step's other instructions move."""
    moved = [work.moved for work in costs.work if work.moved and not work.products]
    largest = min(max(moved, default=1.0), 2.0**28)
    return [4**power for power in range(6, max(7, math.ceil(math.log(largest, 4))) + 1)]
