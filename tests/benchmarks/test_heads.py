"""The script that compares the mask heads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_has_its_rows():
    options = ("--visual=dinov3_s", "--size=32", "--classes=4", "--present=2", "--rounds=1")
    done = subprocess.run(
        [sys.executable, "benchmarks/heads.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line[:28].strip() for line in done.stdout.splitlines()[2:]]
    forms = [f"{head}, {form}" for head in ("mask2former", "pmt") for form in ("prediction", "training")]
    assert rows == forms * 2  # costs, then times
