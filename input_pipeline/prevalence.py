"""How often a data set has each label, beside what has been published of the whole release."""

import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from input_pipeline.compact import Names
from input_pipeline.sources import ImageRow

_WHOLE = (
    0.5  # of the published images: a smaller part is shown and not judged, because parts are seldom drawn at random
)
_DEVIATIONS = 5.0
_RELATIVE = 0.05  # views and dropped rows move a prevalence by as much


@dataclass(frozen=True)
class Prevalence:
    """One label.

    Attributes:
      label: its name.
      positive: images with the label, or studies where the release labels those, or phrases where each has a finding.
      units: images, studies or phrases in all.
      published: share of positive ones in the whole release, NaN where it is not known.
      judged: whether this is the most of the release.
    """

    label: str
    positive: int
    units: int
    published: float
    judged: bool

    @property
    def odd(self) -> bool:
        """Whether it is further from the published share than chance and the choice of views explain."""
        if not self.judged or math.isnan(self.published):
            return False
        deviation = math.sqrt(self.published * (1 - self.published) / self.units)
        return abs(self.positive / self.units - self.published) > _DEVIATIONS * deviation + _RELATIVE * self.published

    def __str__(self) -> str:
        """One aligned line."""
        share = f"{self.positive / self.units:>8.2%}" if self.units else f"{'n/a':>8}"
        published = "" if math.isnan(self.published) else f"   published {self.published:.2%}"
        verdict = "   DIFFERS: is this the whole release?" if self.odd else ""
        return f"label  {self.label:<28}{self.positive:>9,} of {self.units:,} {share}{published}{verdict}"


def compare_prevalence(
    name: str, labels: Sequence[str], rows: Mapping[str, Sequence[ImageRow]]
) -> tuple[Prevalence, ...]:
    """Counts each label over all splits, each image or study once; of rows with a finding of their own, each image, phrase and finding.

    Args:
      name: of the data set, as in `published_prevalence.json`; of others nothing is published.
      labels: names of `ImageRow.labels`.
      rows: per split.
    """
    published = _published().get(name, {"unit": "image", "units": 0, "positive": {}})
    by_study = published["unit"] == "study"
    counted, positive, whole = Names(), [0] * len(labels), published["units"]
    for row in (row for part in rows.values() for row in part):
        if counted.put(row.study if by_study else row.part or row.image):
            positive = [count + (label == 1) for count, label in zip(positive, row.labels, strict=True)]
    return tuple(
        Prevalence(
            label=label,
            positive=count,
            units=len(counted),
            published=published["positive"][label] / whole if label in published["positive"] else math.nan,
            judged=len(counted) >= _WHOLE * max(1, whole),
        )
        for label, count in zip(labels, positive, strict=True)
    )


def _published() -> dict:
    """Per data set what its labels belong to, how many of those there are, how many are positive by label, and who says so."""
    file = importlib.resources.files("input_pipeline") / "published_prevalence.json"
    return json.loads(file.read_text())
