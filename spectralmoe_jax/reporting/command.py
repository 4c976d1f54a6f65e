"""`spectralmoe report`: one HTML page of a run or a grid."""

from __future__ import annotations

import os
from pathlib import Path

from spectralmoe_jax.checkpoints.store import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.judged import judge, read_judged, steps_of
from spectralmoe_jax.files import replacing
from spectralmoe_jax.prediction.pictures import PICTURES
from spectralmoe_jax.reporting.page import grid_page, run_page
from spectralmoe_jax.reporting.records import is_grid, read_grid, read_run

REPORT = "report.html"


def report(workdir: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a run or a grid; it needs no other file and no network.

    A run whose best checkpoint was not judged yet is evaluated on the target first, see `evaluation.judged`;
    of a grid, what `spectralmoe ablate` left is shown, and no model is read.

    Args:
      workdir: folder that `spectralmoe train` or `ablate` wrote.
      output: file to write; default `report.html` in there.

    Returns: the file.

    Raises UserError naming the file or key that is wrong.
    """
    workdir = Path(workdir)
    if is_grid(workdir):
        page = grid_page(read_grid(workdir), str(workdir))
    else:
        _judge_anew(workdir)
        page = run_page(read_run(workdir), str(workdir))
    path = workdir / REPORT if output is None else Path(output)
    try:
        with replacing(path) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror}); choose another --output") from None
    return path


def _judge_anew(workdir: Path) -> None:
    """Evaluate a run where it was not, or where checkpoints came since."""
    config = read_run_config(workdir)
    (step, last), known = steps_of(workdir, config), read_judged(workdir)
    if step is None:
        raise UserError(f"{workdir}: holds no checkpoint yet; train first")
    judged = known and (known.get("step"), known.get("trained"))
    if judged != (step, last) or not (workdir / PICTURES).is_file():
        judge(workdir, config)
