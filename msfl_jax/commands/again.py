"""`msfl eval again`: computes the results of a run directory again from their predictions; imports no JAX."""

from pathlib import Path

from input_pipeline.errors import DataError
from msfl_jax.tasks.recompute import check_results

_WORDS = {True: "agrees", False: "DIFFERS", None: "-"}


def again_report(workdir: Path) -> str:
    """One line per result.

    Args:
      workdir: a run directory.

    Raises:
      UserError: it has no results.
      DataError: a result does not follow from its predictions; the lines are printed before.
    """
    checks = check_results(workdir)
    width = max(len(check.file.stem) for check in checks)
    lines = "\n".join(f"{check.file.stem:<{width}}   {_WORDS[check.agrees]:<8} {check.said}" for check in checks)
    wrong = sum(check.agrees is False for check in checks)
    if not wrong:
        return lines
    print(lines, flush=True)
    raise DataError(f"{workdir}: {wrong} of {len(checks)} results do not follow from their predictions; evaluate again")
