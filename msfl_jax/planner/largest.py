"""The largest batch that fits a chip, from few compiled ones: a line through two, one more to confirm it, and at most one correction."""

import dataclasses
import math
from collections.abc import Callable

# MIMIC-CXR has 227,835 studies: no step needs more than a whole data set.
MOST = 2**18
# A factor between the first two batches that lies between those of configurations people compare, so that rows share compiled steps.
_APART = 8
# Rows of a chip in eights: a TPU pads to them.
_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Measured:
    """A batch that was tried.

    Attributes:
      batch: global.
      peak: bytes of one chip; NaN where a compiler gave up without a number.
      fits: whether they are no more than it has.
      fixed: of them, those of parameters and optimizer.
      refused: whether the compiler gave up. What it says then is of its last attempt to save memory: less than a smaller batch may take.
    """

    batch: int
    peak: float
    fits: bool
    fixed: float = 0.0
    refused: bool = False


@dataclasses.dataclass(frozen=True)
class Largest:
    """What was found.

    Attributes:
      batch: the largest that was compiled and fits; 0 where none does.
      final: whether it is where a curve meets the limit, or nothing is left to try; else larger ones may fit as well.
      tried: all batches that were compiled, smallest first.
    """

    batch: int
    final: bool
    tried: tuple[Measured, ...]


def largest_batch(
    measure: Callable[[int], Measured], *, start: int, granule: int, limit: float, tries: int = 4
) -> Largest:
    """Finds the largest batch that fits.

    Two batches give a line of memory over batch, or one, where the compiler refuses the other, with what a batch of 0 would take; its crossing with
    the limit is compiled to confirm it, and where that fails a curve through three points is tried.

    Args:
      measure: compiles a step.
      start: batch that is tried first, the run's own.
      granule: every batch is a multiple of it.
      limit: bytes of a chip that a program may have.
      tries: compiled steps at most.
    """
    points = [measure(start)]
    if (second := _second(points[0], granule, limit)) != start:
        points.append(measure(second))
    final = len(points) == 1
    while not final and len(points) < tries:
        wanted = _crossing(points, granule, limit)
        if wanted is None:  # nothing is left between what fits and what does not
            final = True
        else:
            points.append(measure(wanted))
            final = points[-1].fits
    fitting = max((point.batch for point in points if point.fits), default=0)
    return Largest(fitting, final, tuple(sorted(points, key=lambda point: point.batch)))


def _second(first: Measured, granule: int, limit: float) -> int:
    """The batch for the line's other end: eight times the first where that should fit, else an eighth of it."""
    if first.fits and _APART * first.batch <= MOST:
        room = (limit - first.fixed) / max(first.peak - first.fixed, 1.0)
        if room >= _APART:
            return _APART * first.batch
    smaller = first.batch // _APART // granule * granule
    if smaller or granule < first.batch:
        return smaller or granule
    return 2 * first.batch if first.fits else first.batch


def _crossing(points: list[Measured], granule: int, limit: float) -> int | None:
    """Where the curve through the points meets the limit, in whole granules, between what fits and what does not; None where nothing is left."""
    low = max((point.batch for point in points if point.fits), default=0)
    high = min((point.batch for point in points if not point.fits), default=MOST + granule)
    numbered = [point for point in points if math.isfinite(point.peak)]
    compiled = [point for point in numbered if not point.refused]
    known = sorted((point.batch, point.peak) for point in compiled or numbered)
    if len(compiled) == 1:
        known = [(0, compiled[0].fixed), *known]
    found = _solved(known, limit) if len(known) > 1 else math.nan
    if found <= 0:
        return None
    if not low <= found < high:  # no number to go by, memory that does not grow, or a curve that leads astray
        found = (low + high) / 2 if high <= MOST else MOST
    step = granule * _ROWS if found >= granule * _ROWS else granule
    batch = int(found) // step * step
    return batch if low < batch < high else None


def _solved(known: list[tuple[int, float]], limit: float) -> float:
    """The batch at which a line through two points, or a parabola through the last three, is at the limit; NaN where it never is."""
    (x0, y0), (x1, y1) = known[-2:]
    slope, bend = (y1 - y0) / (x1 - x0), 0.0
    if len(known) > 2:
        x2, y2 = known[-3]
        bend = (slope - (y0 - y2) / (x0 - x2)) / (x1 - x2)
    # In Newton's form around (x0, y0): y = y0 + slope (x - x0) + bend (x - x0) (x - x1).
    linear, constant = slope - bend * (x1 - x0), y0 - limit
    if abs(bend) * x1 <= 1e-9 * abs(slope):
        return x0 - constant / linear if linear > 0 else math.nan
    inside = linear**2 - 4 * bend * constant
    return x0 + (-linear + math.sqrt(inside)) / (2 * bend) if inside >= 0 else math.nan
