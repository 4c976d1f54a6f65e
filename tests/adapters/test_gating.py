"""The router's logits against distances computed in float64."""

import numpy as np
import pytest

from spectralmoe_jax.adapters.spectral_moe import clean_logits
from spectralmoe_jax.config.adapters import SpectralMoEConfig

DISTANCES = {
    ("laplace", "l1"): lambda x: -np.abs(x).sum(-1),
    ("laplace", "l2"): lambda x: -np.sqrt((x**2).sum(-1)),
    ("gaussian", "l2"): lambda x: -(x**2).sum(-1),
}
BOUNDS = {"laplace": 1e-4, "gaussian": 1e-6}  # relative to the largest difference


@pytest.mark.parametrize(("gating", "distance"), DISTANCES)
def test_differences_between_experts_keep_their_precision(gating, distance):
    """Only they matter. Tokens far from all gate vectors have distances far larger than these."""
    rng = np.random.default_rng(0)
    tokens = (rng.normal(size=(2, 256, 128)) + 4).astype(np.float32)
    gates = (0.05 * rng.normal(size=(128, 6))).astype(np.float32)
    config = SpectralMoEConfig(gating=gating, distance=distance)
    found = np.asarray(clean_logits(tokens, gates, config), np.float64)
    true = DISTANCES[gating, distance](tokens[:, :, None].astype(np.float64) - gates.T.astype(np.float64))
    differences, wanted = found - found[..., :1], true - true[..., :1]
    assert np.abs(differences - wanted).max() < BOUNDS[gating] * np.abs(wanted).max()
