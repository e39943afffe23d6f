"""Studies per CPU-second of the synthetic study, with 1 and 2 workers: `python tests/benchmarks/synthetic.py [STUDIES]`."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2

from input_pipeline.datasets.synthetic import synthesize


def cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(studies: int, workers: int) -> tuple[float, float]:
    """CPU and wall seconds to synthesize `studies` studies at 256 px, worker start included."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = cpu_seconds(), time.perf_counter()
        synthesize(Path(folder) / "study", studies=studies, seed=0, workers=workers, progress=False)
        return cpu_seconds() - cpu, time.perf_counter() - wall


def main() -> None:
    """Prints one row per number of workers."""
    cv2.setNumThreads(0)
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    print(f"{studies} studies at 256 px\n\nworkers   CPU s   wall s   studies per CPU-second")
    for workers in (1, 2):
        cpu, wall = measure(studies, workers)
        print(f"{workers:7}{cpu:8.1f}{wall:9.1f}{studies / cpu:25.1f}")


if __name__ == "__main__":
    main()
