"""Predicted against measured: `msfl plan --topology cpu` beside the step that it predicts, on one core, in CPU time.

One core, because there the time of the process is that of the work, whoever else is on the machine. The prediction comes first and knows of the step
only its program: rates of products and copies are measured on products and copies. Then the step itself runs, on a batch of noise.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "demo": ("demo", 32, ()),
    "demo, 8 studies": ("demo", 8, ()),
    "demo, remat full": ("demo", 32, ("--config.model.remat=full",)),
    "s16, 4 studies": (
        "mimic_vit_s16",
        4,
        ("--config.model.compute_dtype=float32", "--config.model.flat_products=True"),
    ),
}
VOCABULARY = 4000


def measured(config: Any, steps: int) -> tuple[float, float]:
    """Median seconds of a step after two to warm up, and the difference of its quartiles."""
    import jax
    import numpy as np

    from msfl_jax.model import Model
    from msfl_jax.parallel.mesh import make_mesh
    from msfl_jax.train.optimizer import make_optimizer
    from msfl_jax.train.state import create_state
    from msfl_jax.train.step import abstract_batch, jit_step_of

    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = Model.create(config, vocab_size=VOCABULARY)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    with jax.set_mesh(mesh):
        state = create_state(model, optimizer, config.seed, mesh)
        batch = noise(abstract_batch(config, mesh), config.text.max_sentences, np.random.default_rng(0))
        step = jit_step_of(config, state, mesh, model=model, optimizer=optimizer)
        taken = []
        for _ in range(steps + 2):
            begin = time.process_time()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            taken.append(time.process_time() - begin)
    quartiles = statistics.quantiles(taken[2:], n=4)
    return quartiles[1], quartiles[2] - quartiles[0]


def noise(shapes: dict[str, Any], sentences: int, rng: Any) -> dict[str, Any]:
    """A batch of random pixels and words; sentences of equal length."""
    import jax

    high = {"image": 256, "token_ids": VOCABULARY, "study_key": 2**31}
    batch = {name: rng.integers(6, high[name], shapes[name].shape).astype(shapes[name].dtype) for name in high}
    rows, tokens = shapes["sentence_ids"].shape
    batch["sentence_ids"] = (1 + (rng.random((rows, 1)) * 0 + range(tokens)) * sentences // tokens).astype("int32")
    return jax.device_put(batch)


def compare(name: str, steps: int) -> dict[str, Any]:
    """Plans a case, then runs it."""
    from msfl_jax.commands.plan import plan_report
    from msfl_jax.config_files import load_config

    base, batch, overrides = CASES[name]
    config = load_config(base, [f"--config.data.batch_size={batch}", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        options = {"vocab_size": VOCABULARY, "folder": Path(folder), "tries": 1, "as_json": True}
        (plan,) = json.loads(plan_report(config, ["cpu"], **options))
    median, spread = measured(config, steps)
    times = plan["times"]
    return {
        "case": name,
        "predicted_ms": 1e3 * times["step"],
        "products_ms": 1e3 * times["compute"],
        "traffic_ms": 1e3 * times["memory"],
        "measured_ms": 1e3 * median,
        "quartiles_apart_ms": 1e3 * spread,
        "ratio": times["step"] / median,
    }


def main() -> None:
    """Prints a line for each case, and ends with code 1 where one is more than 30 % off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=20, help="timed")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), flush=True)
    rows = []
    for name in options.cases:
        rows.append(compare(name, options.steps))
        print(
            json.dumps(
                {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}
            ),
            flush=True,
        )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"predicted / measured: worst {100 * worst:.0f} % off")
    sys.exit(int(worst > 0.3))


if __name__ == "__main__":
    main()
