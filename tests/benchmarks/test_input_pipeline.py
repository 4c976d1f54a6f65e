"""The script that compares the input pipeline with a PyTorch DataLoader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_has_its_row():
    options = ("--case=flip", "--setting=one process", "--rounds=1", "--seconds=0.1")
    done = subprocess.run(
        [sys.executable, "benchmarks/input_pipeline.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = done.stdout.splitlines()[-1]
    assert row.startswith("flip, 32 bands int16")
    assert len(row.split()) > 12  # three sides, their ratios and times
