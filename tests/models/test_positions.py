"""Resampled tables against torch's `interpolate`."""

import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.models.positions import resize_bicubic, resize_linear

torch = pytest.importorskip("torch", reason="needs the extra `torch`")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 11), (37, 32), (3, 2)])
def test_bicubic_equals_torch(size, antialias):
    grid = np.random.default_rng(0).normal(size=(16, 13, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(grid.transpose(2, 0, 1))[None], size=size, mode="bicubic", antialias=antialias
    )[0].numpy().transpose(1, 2, 0)  # fmt: skip
    found = resize_bicubic(jnp.asarray(grid), *size, antialias=antialias)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 9, 14, 63])
def test_linear_equals_torch(size):
    tables = np.random.default_rng(0).normal(size=(2, 13, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(tables.transpose(0, 2, 1)), size=size, mode="linear", align_corners=False
    ).numpy().transpose(0, 2, 1)  # fmt: skip
    np.testing.assert_allclose(resize_linear(jnp.asarray(tables), size), wanted, atol=1e-5)
