"""CPU-seconds until a pretraining step is ready to run: `python tests/benchmarks/compile.py [--config mimic_vit_b16]`.

The configuration as it is, and variants of it, each in a process of its own, for one CPU device; nothing is computed, and nothing comes from a cache.
CPU-seconds are those of all threads of the process, from a model that is described to a program that could be called.
"""

import argparse
import datetime
import os
import subprocess
import sys
import time

FLOAT32 = "model.compute_dtype=float32"
VARIANTS = {
    "as it is": (),
    "float32": (FLOAT32,),
    "float32, nothing computed again": (FLOAT32, "model.remat=none"),
    "the same, layers unrolled": (FLOAT32, "model.remat=none", "model.scan_layers=False"),
}


def main() -> None:
    """Prints a line for each variant; or, as a child, takes the time of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="mimic_vit_b16", help="name or path of a configuration of pretraining")
    parser.add_argument("--batch", type=int, default=8, help="studies per step")
    parser.add_argument("--vocabulary", type=int, default=30_000, help="words of the tokenizer")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(*take(options))
        return
    print(f"{datetime.date.today()}, {options.config}, {options.batch} studies\n")
    print(f"{'':34}{'tracing':>10}{'compiling':>10}{'both, CPU-s':>13}{'ratio':>8}")
    first = None
    for name in VARIANTS:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        tracing, compiling = map(float, done.stdout.split())
        first = first or tracing + compiling
        ratio = (tracing + compiling) / first
        print(f"{name:34}{tracing:10.1f}{compiling:10.1f}{tracing + compiling:13.1f}{ratio:8.2f}", flush=True)


def take(options: argparse.Namespace) -> tuple[float, float]:
    """CPU-seconds of tracing and lowering, and of compiling."""
    import jax

    from msfl_jax.config_files import load_config
    from msfl_jax.planner.compiler import lowered_step

    words = (f"data.batch_size={options.batch}", *VARIANTS[options.variant])
    config = load_config(options.config, [f"--config.{word}" for word in words])
    begin = time.process_time()
    lowered, _, _ = lowered_step(config, options.vocabulary, jax.devices()[:1], platform="cpu")
    traced = time.process_time()
    lowered.compile()
    return traced - begin, time.process_time() - traced


if __name__ == "__main__":
    main()
