"""`msfl export` and `msfl verify`: a run as a folder that other libraries load, and whether such a folder is whole."""

from collections.abc import Mapping
from pathlib import Path

from msfl_jax.export.parity import NOT_CHECKED, Parity
from msfl_jax.export.verify import verify_export
from msfl_jax.export.writer import export_run
from msfl_jax.tasks.run import open_run


def export_report(
    workdir: Path,
    target: Path,
    *,
    step: str = "",
    decoders: bool = False,
    mlm_head: bool = False,
    to_stablehlo: bool = False,
) -> str:
    """Exports a run and says what was left out and how far PyTorch is from JAX.

    Args:
      workdir: run directory.
      target: a new folder.
      step: a number, "best", or "" for the latest.
      decoders, mlm_head, to_stablehlo: see `export_run`.

    Raises:
      UserError: no run directory, or `target` is taken.
      CheckpointError: the checkpoint cannot be read, or PyTorch disagrees.
    """
    run = open_run(workdir, step=int(step) if step.isdecimal() else step or None, decoders=decoders or mlm_head)
    exported = export_run(run, target, decoders=decoders, mlm_head=mlm_head, to_stablehlo=to_stablehlo)
    return "\n".join([*exported.notes, *_lines(exported.compared), f"export   {target}, step {run.step}"])


def verify_report(folder: Path) -> str:
    """Verifies an export and says what was checked.

    Raises:
      UserError: no export.
      CheckpointError: it is not whole.
    """
    found = verify_export(folder)
    return "\n".join(
        [
            f"files    {found.files} agree with the manifest",
            f"tensors  {found.tensors}: names, shapes, dtypes, finite, the same in all formats",
            *_lines(found.compared),
        ]
    )


def _lines(compared: Mapping[str, Parity] | None) -> list[str]:
    if compared is None:
        return [f"parity   {NOT_CHECKED}"]
    worst = max(compared, key=lambda name: compared[name].difference)
    return [
        f"parity   {len(compared)} outputs of PyTorch, largest difference {compared[worst].difference:.1e} ({worst})"
    ]
