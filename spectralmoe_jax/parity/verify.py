"""`spectralmoe verify`: compare the model with a folder of golden values."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parity.adapter_goldens import verify_adapter
from spectralmoe_jax.parity.comparison import Check
from spectralmoe_jax.parity.pmt_goldens import verify_plain_decoder
from spectralmoe_jax.parity.segmenter_goldens import verify_segmenter

# What a golden is found by, how it is checked, and the kind of file that has to lie beside it ("" for none).
GOLDENS = (
    ("adapter_*.npz", verify_adapter, ""),
    ("*.json", verify_segmenter, ".npz"),
    ("decoder.safetensors", verify_plain_decoder, ""),
)


def verify(directory: str | os.PathLike[str]) -> bool:
    """Check all golden files of a folder and print a table: file, quantity, error, bound, ok.

    Args:
      directory: folder of golden files, at any depth.

    Returns:
      Whether every checked quantity is within its bound. A quantity that cannot be checked is listed with the
      reason and does not count as a miss.

    Raises:
      UserError: as in `check_folder`.
    """
    checks = check_folder(directory)
    table = Table(box=None, header_style="bold")
    for column, justify in (("file", "left"), ("quantity", "left"), ("error", "right"), ("bound", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("ok")
    for check in checks:
        error = "" if np.isnan(check.error) else f"{check.error:.1e}"
        bound = "" if check.bound is None else f"{check.bound:.0e}"
        table.add_row(check.file, check.quantity, error, bound, _verdict(check))
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)
    checked = [check for check in checks if check.bound is not None]
    misses = [check for check in checked if not check.ok]
    skipped = len(checks) - len(checked)
    console.print(f"{len(checked)} checked, {len(misses)} missed, {skipped} skipped")
    return not misses


def check_folder(directory: str | os.PathLike[str]) -> list[Check]:
    """Check every golden file below a folder, each kind by what `GOLDENS` finds it by.

    Raises:
      UserError: the folder does not exist, holds no golden file, or holds a broken one.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with golden files, such as tests/goldens")
    files = [
        (path, verify)
        for pattern, verify, beside in GOLDENS
        for path in sorted(root.rglob(pattern))
        if not beside or path.with_suffix(beside).exists()
    ]
    if not files:
        raise UserError(
            f"{root}: holds neither adapter_*.npz nor NAME.json with NAME.npz nor decoder.safetensors; see "
            "goldens/README.md"
        )
    return [
        check._replace(file=str(path.with_name(check.file).relative_to(root)))
        for path, verify in files
        for check in verify(path)
    ]


def _verdict(check: Check) -> str:
    if check.bound is None:
        return f"[yellow]{check.note}[/]"
    return "[green]ok[/]" if check.ok else f"[red]MISS[/] {check.note}"
