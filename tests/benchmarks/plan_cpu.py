"""Predicted against measured: `msfl plan --topology cpu` beside the step that it predicts, on one core, in CPU time.

One core, because there the time of the process is that of the work, whoever else is on the machine. The prediction comes first and knows of the step
only its program: rates of products and copies are measured on products and copies. Then the step runs, on a batch of noise, and so on in turns.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
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


def step_of(config: Any) -> Callable[[int], list[float]]:
    """Compiles the step; what is returned runs it so many times and says the seconds of each."""
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
        states = [create_state(model, optimizer, config.seed, mesh)]
        batch = noise(abstract_batch(config, mesh), config.text.max_sentences, np.random.default_rng(0))
        step = jit_step_of(config, states[0], mesh, model=model, optimizer=optimizer)

    def run(steps: int) -> list[float]:
        taken = []
        with jax.set_mesh(mesh):
            for _ in range(steps):
                begin = time.process_time()
                states[0], metrics = step(states[0], batch)
                jax.block_until_ready((states[0], metrics))
                taken.append(time.process_time() - begin)
        return taken

    return run


def noise(shapes: dict[str, Any], sentences: int, rng: Any) -> dict[str, Any]:
    """A batch of random pixels and words; sentences of equal length."""
    import jax

    high = {"image": 256, "token_ids": VOCABULARY, "study_key": 2**31}
    batch = {name: rng.integers(6, high[name], shapes[name].shape).astype(shapes[name].dtype) for name in high}
    rows, tokens = shapes["sentence_ids"].shape
    batch["sentence_ids"] = (1 + (rng.random((rows, 1)) * 0 + range(tokens)) * sentences // tokens).astype("int32")
    return jax.device_put(batch)


def compare(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Plans a case and runs it, in turns: what a core does in a second changes while one looks at it. Medians of all rounds."""
    from msfl_jax.commands.plan import plan_report
    from msfl_jax.config_files import load_config

    base, batch, overrides = CASES[name]
    config = load_config(base, [f"--config.data.batch_size={batch}", *overrides])
    run = step_of(config)
    times, taken = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            options = {"vocab_size": VOCABULARY, "folder": Path(folder), "tries": 1, "as_json": True}
            (plan,) = json.loads(plan_report(config, ["cpu"], **options))
            times.append(plan["times"])
            run(2)
            taken.append(run(steps))
    predicted = {part: 1e3 * statistics.median(one[part] for one in times) for part in ("step", "compute", "memory")}
    quartiles = [1e3 * value for value in statistics.quantiles([one for part in taken for one in part], n=4)]
    return {
        "case": name,
        "predicted_ms": predicted["step"],
        "products_ms": predicted["compute"],
        "traffic_ms": predicted["memory"],
        "measured_ms": quartiles[1],
        "quartiles_apart_ms": quartiles[2] - quartiles[0],
        "ratio": predicted["step"] / quartiles[1],
        "by_round": [round(one["step"] / statistics.median(part), 2) for one, part in zip(times, taken, strict=True)],
    }


def main() -> None:
    """Prints a line for each case, and ends with code 1 where one is more than 30 % off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="of rates and steps in turns")
    parser.add_argument("--steps", type=int, default=10, help="timed in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), flush=True)
    rows = []
    for name in options.cases:
        rows.append(compare(name, options.steps, options.rounds))
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
