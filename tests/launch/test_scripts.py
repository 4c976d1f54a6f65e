"""Every shell script of the project passes shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.launch.conftest import ROOT


def test_shellcheck():
    scripts = [path for path in (*sorted((ROOT / "launch").iterdir()), ROOT / ".ci" / "run")
               if path.read_text().startswith("#!/usr/bin/env bash")]  # fmt: skip
    assert {"local.sh", "slurm.sbatch", "tpu_pod.sh", "watchdog.sh", "run"} == {path.name for path in scripts}
    assert all(path.stat().st_mode & 0o111 for path in scripts)
    shellcheck = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
    done = subprocess.run(
        [shellcheck, "--severity=style", *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
