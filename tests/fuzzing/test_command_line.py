"""Random arguments and override values: status 0, or 2 with one line."""

import contextlib
import io

import numpy as np
import pytest

from spectralmoe_jax.cli.main import COMMANDS, main
from tests.fuzzing.outcome import try_all
from tests.hostile_names import NAMES, commands

KEYS = (
    "seed", "bands", "classes.names", "classes.palette", "data.root", "data.kind", "data.source", "data.crop",
    "data.holdout", "train.steps", "train.learning_rate", "train.betas", "model.visual.kind",
    "model.head.kind", "model.adapter.kind", "evaluate.window", "augment.scale", "loss.num_points",
    "parallel.data", "name", "x", "",
    ".", "train", "train.", "train.steps.x", "model.visual.weights", "streams.a.bands",
)  # fmt: skip
VALUES = (
    *NAMES, "none", "true", "1", "-1", "0", "1e999", "nan", "1_000", "9" * 5000, "(1, 2", "()", "[]", "{}",
    "'a'", "lambda: 1",
    "__import__('os')", "a,b", ",", "((((((1))))))", "(" * 500, "1" + " + 1" * 50,
    "0x10", "1j", "b'x'", "...", "*",
)  # fmt: skip
OPTIONS = (
    "--workdir",
    "--config",
    "--split",
    "--output",
    "--seeds",
    "--help",
    "-h",
    "--",
    "-",
    "--x",
    "-x",
    "--=",
)


def lines(count, seed):
    random = np.random.default_rng(seed)

    def one(among):
        return among[int(random.integers(len(among)))]

    for _ in range(count):
        kind = int(random.integers(3))
        if kind == 0:
            argv = ["config", "--config", "quickstart", f"--config.{one(KEYS)}={one(VALUES)}"]
        elif kind == 1:
            argv = ["params", "--config", "quickstart", f"--config.{one(KEYS)}", one(VALUES)]
        else:
            argv = [one((*COMMANDS, *NAMES))]
            argv += [one(one((OPTIONS, VALUES))) for _ in range(int(random.integers(5)))]
            argv = [word for word in argv if not word.startswith("/")]
        yield repr(argv)[:100], argv


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 600, marks=pytest.mark.slow)])
def test_arguments(seed, count, record_property, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(argv):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(argv)
            except SystemExit as end:  # of --help
                status = end.code
        return status, err.getvalue()

    def is_exact(argv, found):
        status, said = found
        if status == 2:
            return said.startswith("error: ") and said.count("\n") == 1 and not commands(said)
        return status in (0, None) and not said

    try_all(lines(count, seed), read, is_exact, record_property, "arguments")
    assert list(tmp_path.iterdir()) == []
