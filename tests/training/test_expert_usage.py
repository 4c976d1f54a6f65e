"""Logged expert usage against counts by hand."""

import json

import numpy as np

from spectralmoe_jax.training.logging import MetricsLog
from spectralmoe_jax.training.step import expert_usage


def test_shares(tmp_path):
    strongest = np.random.default_rng(0).integers(0, 5, (3, 2, 4, 50))
    found = expert_usage(strongest, 6)
    expected = [[np.bincount(one.ravel(), minlength=6) / 200 for one in layer] for layer in strongest]
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    with MetricsLog(tmp_path, 0) as log:
        log.write_arrays(7, "experts", {"expert_usage": found})
        log.write_arrays(8, "experts", {})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["kind"]) == (7, "experts")
    np.testing.assert_allclose(record["expert_usage"], expected, atol=5e-5)
