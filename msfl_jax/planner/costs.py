"""What one training step costs a chip, read from the program that was compiled for it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

from msfl_jax.planner import products, traffic
from msfl_jax.planner.hlo import executed, parse
from msfl_jax.planner.products import Product
from msfl_jax.planner.traffic import Transfer


@dataclasses.dataclass(frozen=True)
class Work:
    """What an instruction does between two others, so many times a step.

    Attributes:
      flops: of its products.
      moved: bytes through main memory.
      products: those that are written as products, which a CPU's rates are measured for.
    """

    flops: float
    moved: float
    products: tuple[Product, ...] = ()


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one chip and one step, loops multiplied out.

    Attributes:
      work: kinds of work, and how often each is done.
      transfers: exchanges with other chips, and how often each is done.
      loops: how many there are.
      unstated: loops whose trips the program does not say; they count once.
    """

    work: Mapping[Work, int]
    transfers: Mapping[Transfer, int]
    loops: int
    unstated: int

    @property
    def flops(self) -> float:
        """Of all products."""
        return sum((work.flops * times for work, times in self.work.items()), 0.0)

    @property
    def moved(self) -> float:
        """Bytes through main memory."""
        return sum((work.moved * times for work, times in self.work.items()), 0.0)

    @property
    def products(self) -> Mapping[Product, int]:
        """The products of all work, and how often each is taken."""
        found: Counter[Product] = Counter()
        for work, times in self.work.items():
            for product in work.products:
                found[product] += times
        return found

    def sent(self, kind: str) -> float:
        """Bytes that a chip sends in exchanges of one kind."""
        return sum((one.sent * times for one, times in self.transfers.items() if one.kind == kind), 0.0)

    def count(self, kind: str) -> int:
        """Exchanges of one kind."""
        return sum(times for one, times in self.transfers.items() if one.kind == kind)


def costs_of(text: str) -> Costs:
    """Reads the text of a compiled step.

    Args:
      text: HLO after all of XLA's passes, for one of the devices that run it together.

    Raises:
      ValueError: it is no such text.
    """
    module = parse(text)
    work: Counter[Work] = Counter()
    transfers: Counter[Transfer] = Counter()
    ran, loops = executed(module)
    for one in ran:
        for transfer in traffic.transfers_of(module, one):
            transfers[transfer] += one.times
        done = Work(
            products.flops_of(module, one),
            traffic.moved(module, one),
            tuple(products.products_of(module, one)),
        )
        if done.flops or done.moved:
            work[done] += one.times
    return Costs(work, transfers, len(loops), sum(trips is None for trips in loops))
