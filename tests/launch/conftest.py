"""Fakes of scheduler and cloud programs on PATH that record how they are called."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).parent / "fakes"
# A training that goes on until SIGTERM, and says that it is there.
UNTIL_ASKED = "trap 'exit 0' TERM; touch $RECORD/waiting.$$; while :; do sleep 0.05; done"


class Machine:
    """A place to run launch scripts in, where none of the real programs is found first."""

    def __init__(self, folder: Path):
        self.record = folder / "record"
        self.record.mkdir()
        programs = folder / "programs"
        programs.mkdir()
        (programs / "python3").symlink_to(sys.executable)
        for name in ("srun", "sbatch", "spectralmoe"):
            shutil.copy(FAKES / name, programs / name)
        for name in ("gcloud", "kubectl", "git", "scontrol"):
            shutil.copy(FAKES / "record", programs / name)
        # No GPU, whatever machine this is.
        (programs / "nvidia-smi").write_text("#!/bin/sh\n")
        (programs / "nvidia-smi").chmod(0o755)
        kept = ("HOME", "LANG", "TMPDIR")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RECORD": str(self.record),
        }

    def start(self, *words, **environment) -> subprocess.Popen:
        return subprocess.Popen([str(word) for word in words], cwd=ROOT, text=True,
                                env=self.environment | environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def run(self, *words, **environment) -> subprocess.CompletedProcess:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def await_waiting(self, count: int) -> None:
        """Returns when so many trainings wait for a signal."""
        until = time.monotonic() + 20
        while len(list(self.record.glob("waiting.*"))) < count:
            assert time.monotonic() < until, "the training did not start"
            time.sleep(0.05)

    @property
    def calls(self) -> list[list[str]]:
        """What was called, in order: name and arguments."""
        path = self.record / "calls"
        text = path.read_text() if path.exists() else ""
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    @property
    def trainings(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of every training started."""
        found = []
        paths = [path for path in self.record.glob("training.*") if path.suffix != ".part"]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            arguments, _, environment = path.read_text().partition("\x1e")
            pairs = (pair.partition("=") for pair in environment.split("\0") if pair)
            found.append((arguments.split("\x1f")[:-1], {name: value for name, _, value in pairs}))
        return found


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)
