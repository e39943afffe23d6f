"""A build killed twenty times, at random moments, within shards and at its renames, ends in the bytes of one that never was."""

import collections
import json
import os
import random
import subprocess
import sys

from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr

# One process imports everything once and forks a child per trial, so that a kill costs tenths of a second.
DRIVER = """
import dataclasses, json, os, random, shutil, signal, sys, time
from pathlib import Path
import input_pipeline.build, input_pipeline.shards
from input_pipeline.build import build
from input_pipeline.datasets.mimic_cxr import MimicCxr

KINDS = ("moment", "row", "rename", "moment with workers")


@dataclasses.dataclass(frozen=True)
class Killing(MimicCxr):
    at_image: int = 0

    def image(self, row):
        global images
        images += 1
        time.sleep(0.004)
        if images == self.at_image:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(row)


images = renames = 0


def kill_at_rename(count, after):
    replace = os.replace

    def counted(*paths):
        global renames
        renames += 1
        if renames == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        if renames == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted


def child(root, out, kind, rng):
    workers = 2 if kind == "moment with workers" else 1
    at_image = rng.randrange(1, 9) if kind == "row" else 0
    if kind == "rename":
        kill_at_rename(rng.randrange(1, 26), rng.random() < 0.5)  # a whole build has 24
    source = Killing(root, root, at_image=at_image)
    build(source, out, workers=workers, short_side=32, shard_records=5, progress=False)


def trial(root, out, kind, rng):
    # Whether the build was killed; otherwise it came to its end.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child(root, out, kind, rng)
            status = 0
        finally:
            os._exit(status)
    if kind.startswith("moment"):
        time.sleep(rng.uniform(0, 2.5 if "workers" in kind else 0.3))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"the build failed in a trial of kind {kind}")
    return os.WIFSIGNALED(status)


def check(out, expected):
    # What stands under its final name is whole, and a manifest says that everything is.
    names = {path.name for path in out.iterdir() if path.is_file()} if out.exists() else set()
    if "manifest.json" in names:
        assert names == set(expected), names
    for name in names:
        assert (out / name).read_bytes() == expected[name], name


if __name__ == "__main__":
    root, out, other = (Path(path) for path in sys.argv[1:4])
    rng, wanted = random.Random(int(sys.argv[4])), int(sys.argv[5])
    expected = {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()}
    killed, finished = [], 0
    while len(killed) < wanted:
        kind = KINDS[3] if len(killed) % 7 == 6 else KINDS[len(killed) % 3]
        if trial(root, out, kind, random.Random(rng.random())):
            killed.append(kind)
        check(out, expected)
        if (out / "manifest.json").exists():
            finished += 1
            shutil.rmtree(out)
    print(json.dumps({"killed": killed, "finished": finished}))
"""


def test_a_build_survives_twenty_kills(mimic_root, mimic_build, tmp_path):
    seed = int(os.environ.get("MSFL_FAULT_SEED", random.randrange(2**32)))
    print(f"MSFL_FAULT_SEED={seed}")  # shown where the test fails; set it to replay
    script = tmp_path / "killing.py"
    script.write_text(DRIVER)
    out = mimic_build.parent / "killed-often"
    command = [sys.executable, "-W", "ignore", script, mimic_root, out, mimic_build, str(seed), "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    print(found)
    assert len(found["killed"]) == 20
    assert set(collections.Counter(found["killed"])) == {"moment", "row", "rename", "moment with workers"}
    build(MimicCxr(mimic_root, mimic_root), out, workers=1, short_side=32, shard_records=5, progress=False)
    contents = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert contents == {path.name: path.read_bytes() for path in mimic_build.iterdir() if path.is_file()}
    assert not list((out / ".build").glob("*.tmp"))
