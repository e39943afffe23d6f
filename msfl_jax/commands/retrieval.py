"""`msfl eval retrieval`: from images to reports and back."""

from pathlib import Path

from msfl_jax.parallel import distributed
from msfl_jax.results.tables import retrieval_table, with_caveats
from msfl_jax.tasks.leaks import leak_caveats
from msfl_jax.tasks.outcome import save_outcome
from msfl_jax.tasks.retrieval import evaluate_retrieval
from msfl_jax.tasks.retrieval_result import describe
from msfl_jax.tasks.run import open_run

REPLICATES, SEED = 2000, 0  # of the bootstrap


def retrieval_report(workdir: Path, directory: Path, *, split: str, allow_leak: bool = False) -> str:
    """Retrieval on a build with reports: the table as text; result and ranks go to `workdir`.

    Args:
      workdir: run directory.
      directory: build with reports.
      split: of the build.
      allow_leak: see `leak_caveats`.

    Returns:
      The table; "" in all processes but the lead, which alone writes.

    Raises:
      UserError: the run, the build or the split does not exist.
      DataError: there are no reports, or the split shares images or patients with what the run was trained on.
    """
    distributed.start()
    run = open_run(workdir)
    caveats = leak_caveats(run, directory, split, allow_leak=allow_leak)
    result = evaluate_retrieval(run, directory, split, seed=SEED, replicates=REPLICATES)
    if not distributed.is_lead():
        return ""
    outcome = describe(result, directory, options={"seed": SEED, "replicates": REPLICATES}, caveats=caveats)
    result.ranks.save(outcome.predictions(workdir))
    file = save_outcome(outcome, workdir)
    table = with_caveats(retrieval_table(result), caveats)
    return f"{table}\n\nresult       {file}\npredictions  {outcome.predictions(workdir)}"
