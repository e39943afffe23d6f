"""What both sides of `step.py` share: the plan, the batch by name, and how a step is timed. Imports neither JAX nor PyTorch."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MIN_STEPS = 5  # timed even where time is up: a median of fewer says nothing


@dataclass(frozen=True)
class Plan:
    """What a side is asked to do.

    Attributes:
      folder: holds `config.json`, `weights.safetensors` and `batch_<B>.npz`.
      batches: sizes of the batch, in this order.
      dtype: of matrix products, "float32" or "bfloat16".
      threads: on CPUs; with one, CPU time is counted instead of time on the wall.
      deadline: `time.time()` at which no further row is begun.
      rows: regular expression that a row's name must hold.
      profile: folder for traces of our rows; "" writes none.
    """

    folder: str
    batches: tuple[int, ...]
    steps: int
    warmup: int
    dtype: str
    threads: int
    deadline: float
    rows: str
    profile: str = ""

    def write(self) -> str:
        """As an argument of a child."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Plan":
        """From an argument."""
        values = json.loads(text)
        return cls(**values | {"batches": tuple(values["batches"])})

    @property
    def settings(self) -> dict[str, Any]:
        """`config` and `vocab_size`."""
        return json.loads((Path(self.folder) / "config.json").read_text())


@dataclass(frozen=True)
class Timed:
    """Seconds of the first call, of each timed step, and the loss of the last one."""

    first: float
    steps: list[float]
    value: float


def load_batch(plan: Plan, rows: int) -> dict[str, np.ndarray]:
    """The batch of a size, and what was drawn for it."""
    with np.load(Path(plan.folder) / f"batch_{rows}.npz") as file:
        return dict(file)


def random_states(config: Any, rows: int) -> dict[str, np.ndarray]:
    """What the decoder and the local loss get where they run alone, and what their outputs and the encoders' are multiplied with.

    Args:
      config: with attributes by the names of a run's configuration.
      rows: of the batch.
    """
    rng, model, vision = np.random.default_rng(rows), config.model, config.model.vision
    patches, visible = count_patches(config)
    units = config.text.max_sentences + config.objective.local_alignment.include_cls
    shapes = {
        "visible": (rows, visible, vision.width),
        "cls": (rows, vision.width),
        "regions": (rows, count_regions(config), model.region_width),
        "sentences": (rows, units, model.region_width),
        "image_weights": (rows, patches, vision.width),
        "text_weights": (rows, model.text.max_tokens, model.text.width),
        "pixel_weights": (rows, patches, vision.patch_size**2),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def count_patches(config: Any) -> tuple[int, int]:
    """Patches of an image, and those that masking leaves."""
    vision = config.model.vision
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches, int(patches * (1 - config.image.mask_ratio))


def count_regions(config: Any) -> int:
    """Regions of an image that are compared with sentences."""
    patches, visible = count_patches(config)
    return visible if config.image.passes == "shared" else patches


def named(settings: Any) -> Any:
    """Nested dictionaries as namespaces."""
    if isinstance(settings, dict):
        return SimpleNamespace(**{name: named(value) for name, value in settings.items()})
    return settings


def unit_mask(batch: dict[str, np.ndarray], config: Any) -> np.ndarray:
    """Which units [B, S] of each report exist, as the model finds them."""
    ids = np.arange(1, config.text.max_sentences + 1)
    present = (batch["sentence_ids"][:, :, None] == ids).any(axis=1)
    first = batch["token_ids"][:, :1] != 0
    return np.concatenate([first, present], axis=1) if config.objective.local_alignment.include_cls else present


def pin(threads: int) -> None:
    """Leaves this process as many cores as threads; to be called before a library counts them."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cores)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def measure(dispatch: Callable[[], Any], wait: Callable[[Any], Any], plan: Plan, *, on_cpu: bool) -> Timed:
    """Times a step in the steady state of a training loop: the next step is dispatched before the result of one is waited for.

    Args:
      dispatch: begins a step and returns what to wait for.
      wait: until it is done; returns its loss, still on the device: to copy it would wait for the step behind it.
      plan: how often.
      on_cpu: with one thread there, time is that of the process: neighbours on the machine do not count.
    """
    clock = time.process_time if on_cpu and plan.threads == 1 else time.perf_counter
    begin = time.perf_counter()
    wait(dispatch())
    first = time.perf_counter() - begin
    for _ in range(plan.warmup - 1):
        wait(dispatch())
    pending, value = dispatch(), float("nan")
    wait(pending)
    pending, begin = dispatch(), clock()
    taken: list[float] = []
    while len(taken) < plan.steps and (len(taken) < MIN_STEPS or time.time() < plan.deadline):
        following = dispatch()
        value = wait(pending)
        now = clock()
        taken.append(now - begin)
        pending, begin = following, now
    wait(pending)
    return Timed(first, taken, float(value))


def report(row: dict[str, Any]) -> None:
    """Sends one row to the parent at once: what comes after it may end the process."""
    print("ROW " + json.dumps(row), flush=True)


def read_rows(lines: str) -> Iterator[dict[str, Any]]:
    """The rows in what a child printed."""
    yield from (json.loads(line.removeprefix("ROW ")) for line in lines.splitlines() if line.startswith("ROW "))
