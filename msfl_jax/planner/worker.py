"""The process that compiles for one platform: `python -m msfl_jax.planner.worker` answers requests on stdin, one line of JSON each, on stdout.

A request to compile has `ask` "compile", `topology`, `config`, `vocab_size`, `quick` and `hlo`, the file for the program's text; its answer
has `compiled` or `too_large`. One to measure this CPU has `ask` "rates", `products` and `copies`; its answer has `rates`. What goes
wrong is answered with `refused`, one line, and `exit_code`. Libraries' own words go to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import MsflError
from msfl_jax.config import from_config_dict
from msfl_jax.planner.compiler import compile_step
from msfl_jax.planner.products import Product
from msfl_jax.planner.protocol import Compiled, as_json
from msfl_jax.planner.rates import measure_rates
from msfl_jax.planner.topology import devices_of, parse_topology

# From -1 to 1: what XLA spends on a program's speed.
_QUICK = {"exec_time_optimization_effort": -1.0}
_CALLED = {"tpu": "tpu", "gpu": "cuda", "cpu": "cpu"}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Does what a request asks for; whatever goes wrong is part of the answer."""
    try:
        return {"compile": _compile, "rates": _rates}[request["ask"]](request)
    except MsflError as error:
        return {"refused": str(error), "exit_code": error.exit_code}
    except Exception as error:  # of XLA, of a plugin: one line for the user, all of it on stderr
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        return {"refused": f"{type(error).__name__}: {first[:300]}", "exit_code": 1}


def main() -> None:
    """Answers until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print must not stand between answers
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


def _compile(request: Mapping[str, Any]) -> dict[str, Any]:
    topology, config = parse_topology(request["topology"]), from_config_dict(request["config"])
    devices, platform = devices_of(topology), _CALLED[topology.platform]
    hlo = Path(request["hlo"])
    options = _QUICK if request["quick"] else {}
    found = compile_step(config, request["vocab_size"], devices, platform=platform, hlo=hlo, options=options)
    return {"compiled" if isinstance(found, Compiled) else "too_large": as_json(found)}


def _rates(request: Mapping[str, Any]) -> dict[str, Any]:
    wanted = [Product(**{name: _tuple(value) for name, value in one.items()}) for one in request["products"]]
    return {"rates": as_json(measure_rates(wanted, request["copies"]))}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
