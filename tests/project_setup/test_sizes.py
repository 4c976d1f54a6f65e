"""Sizes that fit the images and the memory."""

import itertools

import pytest

from spectralmoe_jax.config.presets import PRESETS, preset
from spectralmoe_jax.project_setup.sizes import available_memory, choose_sizes

GIB = 1 << 30
VISUAL = [None, *(name for name in PRESETS if "depth_anything" not in name)]


@pytest.mark.parametrize("name", VISUAL)
def test_sizes_fit_one_another(name):
    """Crops of whole patches, enough for the coarsest map; no longer than images that are large enough."""
    encoder = None if name is None else preset(name, "")
    for side, divide in itertools.product((20, 32, 64, 101, 250, 512, 5000), (False, True)):
        sizes = choose_sizes(side, 4, 64 * GIB, encoder, divide)
        assert sizes.crop % sizes.patch == 0
        assert sizes.crop // sizes.patch >= 4
        assert 0 <= sizes.overlap < sizes.crop
        assert sizes.crop <= max(sizes.tile or side, 4 * sizes.patch)
        assert (sizes.tile is None) == (not divide)
        if divide:
            assert sizes.tile <= side
        if encoder and encoder["kind"] == "galileo":
            assert sizes.crop <= encoder["window"] * sizes.patch


@pytest.mark.parametrize("name", [None, "dinov3_l", "galileo_base"])
def test_less_memory_takes_no_more(name):
    encoder = None if name is None else preset(name, "")
    found = [choose_sizes(512, 4, GIB * 2**power // 64, encoder) for power in range(14)]
    for less, more in itertools.pairwise(found):
        assert less.crop <= more.crop
        assert less.batch <= more.batch or less.crop < more.crop
    assert found[-1].fits
    assert found[-1].batch == 8
    assert [sizes.fits for sizes in found] == sorted(sizes.fits for sizes in found)


def test_many_bands_need_more_memory():
    few, many = choose_sizes(512, 3, 64 * GIB), choose_sizes(512, 300, 64 * GIB)
    assert few.batch == many.batch
    assert many.step_bytes > few.step_bytes
    assert choose_sizes(512, 300, GIB).batch < choose_sizes(512, 3, GIB).batch


def test_memory_of_this_machine():
    assert available_memory() > 1 << 26
