"""`spectralmoe verify`: compare the model with a folder of golden values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.parity import encoder_goldens, galileo_goldens
from spectralmoe_jax.parity.adapter_goldens import verify_adapter
from spectralmoe_jax.parity.comparison import Check, read_arrays
from spectralmoe_jax.parity.pmt_goldens import verify_plain_decoder
from spectralmoe_jax.parity.segmenter_goldens import verify_segmenter

# What a golden is found by, how it is checked, and the kind of file that has to lie beside it ("" for none).
GOLDENS = (
    ("adapter_*.npz", verify_adapter, ""),
    ("*.json", verify_segmenter, ".npz"),
    ("decoder.safetensors", verify_plain_decoder, ""),
)

TEXTS = ("meta", "bands", "visible_groups")  # arrays that may hold text
# Modules with `is_golden(path, arrays)` and `verify_encoder(path, arrays)`, for the remaining `.npz` files.
ENCODERS = (
    encoder_goldens,
    galileo_goldens,
)  # fmt: skip


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
        bound = "" if check.bound is None else f"{check.bound:.0e}{' absolute' * check.absolute}"
        table.add_row(plain(check.file), plain(check.quantity), error, bound, _verdict(check))
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

    Encoders are known by the keys of any other `.npz`.

    Raises:
      UserError: the folder does not exist, holds no golden file, or holds a broken one.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with golden files, such as tests/goldens")
    found = [
        (path, verify)
        for pattern, verify, beside in GOLDENS
        for path in sorted(root.rglob(pattern))
        if not beside or path.with_suffix(beside).exists()
    ]
    checks = [(path, _guarded(path, verify, path)) for path, verify in found]
    taken = {path.with_suffix(".npz") for path, _ in found}
    checks += _check_encoders(path for path in sorted(root.rglob("*.npz")) if path not in taken)
    if not checks:
        raise UserError(
            f"{root}: holds neither adapter_*.npz nor NAME.json with NAME.npz, nor decoder.safetensors, nor "
            "the .npz of an encoder; see goldens/README.md"
        )
    return [
        check._replace(file=str(path.with_name(check.file).relative_to(root)))
        for path, of_file in checks
        for check in of_file
    ]


def _guarded(path: Path, check: Callable[..., list[Check]], *arguments: Any) -> list[Check]:
    """Check one golden file, whose arrays may not fit each other.

    Raises:
      UserError: they do not.
    """
    try:
        return check(*arguments)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        reason = shown(" ".join(f"{type(problem).__name__}: {problem}".split()))
        raise UserError(
            f"{path}: its arrays do not fit each other ({reason}); see goldens/README.md"
        ) from problem


def _check_encoders(paths: Iterable[Path]) -> Iterator[tuple[Path, list[Check]]]:
    """Check the golden files of encoders among some `.npz` files; others are left out."""
    for path in paths:
        arrays = read_arrays(path, texts=TEXTS)
        for module in ENCODERS:
            if module.is_golden(path, arrays):
                yield path, _guarded(path, module.verify_encoder, path, arrays)
                break


def _verdict(check: Check) -> Text:
    if check.bound is None:
        return plain(check.note, "yellow")
    return plain("ok", "green") if check.ok else plain(f"MISS {check.note}", "red")
