"""SoftCon: bands by name, their normalisation, and its resampling of positions.

`tests/parity/test_encoder_goldens.py` compares every layer with the authors' code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.pixel_statistics import STATISTICS
from spectralmoe_jax.config.presets import SENTINEL2_BANDS
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.models.encoders.encoder import clip_pixels
from spectralmoe_jax.models.positions import bicubic_matrix, resample_table
from spectralmoe_jax.parameters import leaves, with_values
from spectralmoe_jax.sensors import SENSORS
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter

LEVEL_2A = tuple(band for band in SENTINEL2_BANDS if band != "B10")


def tiny_softcon(bands=SENTINEL2_BANDS, statistics="softcon", **overrides):
    return tiny(**{
        "model.visual.kind": "softcon", "model.visual.storage_tokens": 0, "model.visual.trainable": False,
        "model.visual.table_size": 4, "bands": tuple(bands), "sensor": "sentinel2", "model.pixel_mean": (),
        "model.pixel_std": (), "model.pixel_statistics": statistics,
    } | overrides)  # fmt: skip


@pytest.fixture(scope="module")
def patches():
    """Patch embeddings of an image by the names of its bands, from the same weights."""
    sizes = {"width": 16, "layers": 1, "heads": 2, "patch_size": 4, "table_size": 2}

    def abstract(bands, **settings):
        config = EncoderConfig("softcon", **sizes, band_names=bands, in_channels=len(bands), **settings)
        return nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))

    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in leaves(abstract(SENTINEL2_BANDS)).items()}
    values = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}

    def embed(image, bands, **settings):
        return np.asarray(with_values(abstract(bands, **settings), values).patches(jnp.asarray(image)))

    return embed


@pytest.fixture(scope="module")
def image():
    """In [0, 1], (2, 8, 12, 13)."""
    return np.random.default_rng(1).uniform(size=(2, 8, 12, 13)).astype(np.float32)


def test_the_bands_are_those_of_the_sensor_table():
    assert tuple(band.name for band in SENSORS["sentinel2"].bands) == SENTINEL2_BANDS


def test_bands_are_found_by_name(patches, image):
    wanted = patches(image, SENTINEL2_BANDS)
    order = np.random.default_rng(2).permutation(13)
    shuffled = patches(image[..., order], tuple(np.array(SENTINEL2_BANDS)[order].tolist()))
    np.testing.assert_allclose(shuffled, wanted, atol=1e-5)
    assert np.abs(patches(image[..., order], SENTINEL2_BANDS) - wanted).max() > 0.1


def test_a_missing_cirrus_band_is_zero_after_normalisation(patches, image):
    place = SENTINEL2_BANDS.index("B10")
    without = np.delete(image, place, axis=-1)
    zero = np.insert(without, place, 0, axis=-1)
    np.testing.assert_allclose(patches(without, LEVEL_2A), patches(zero, SENTINEL2_BANDS), atol=1e-5)


def test_pixels_are_clipped_and_truncated(patches, image):
    wide = 3 * image - 1
    clipped = patches(wide, SENTINEL2_BANDS)
    np.testing.assert_array_equal(clipped, patches(np.clip(wide, 0, 1), SENTINEL2_BANDS))
    levels = np.floor(np.clip(wide, 0, 1) * 255) / 255
    eight_bit = patches(wide, SENTINEL2_BANDS, eight_bit=True)
    np.testing.assert_allclose(eight_bit, patches(levels, SENTINEL2_BANDS), atol=1e-5)
    assert np.abs(eight_bit - clipped).max() > 1e-3
    halves = jnp.asarray([0.0, 0.5, 0.999, 1.0])
    np.testing.assert_allclose(clip_pixels(halves, (0.0, 1.0), True) * 255, [0, 127, 254, 255], atol=1e-4)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (LEVEL_2A[1:], r"softcon' needs the band B01; it takes B01, .*; only B10 may be missing"),
        (
            (*LEVEL_2A[:-1], "B10"),
            r"config\.bands: config\.model\.visual\.kind = 'softcon' needs the band B12",
        ),
        ((*SENTINEL2_BANDS, "SCL"), r"'softcon' has no band SCL; it takes B01, B02"),
        ((*LEVEL_2A, "blue"), r"'softcon' reads the band B02 once"),
    ],
)
def test_wrong_bands_are_named(bands, message):
    count = len(bands)
    config = tiny_softcon(
        bands, None, **{"model.pixel_mean": (0.0,) * count, "model.pixel_std": (1.0,) * count}
    )
    with pytest.raises(UserError, match=message) as error:
        segmenter_config(config)
    assert "\n" not in str(error.value)


def test_bands_may_have_their_other_names():
    names = ("coastal", "blue", "green", "red", "B5", "b6", "B7", "nir", "nir08", "B9", "swir16", "swir22")
    for sensor in ("sentinel2", None):
        visual = segmenter_config(tiny_softcon(names, "softcon_l2a", sensor=sensor)).visual
        assert visual.band_names == LEVEL_2A
        assert visual.kernel_places == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)


def test_other_families_keep_the_names_of_their_bands():
    assert segmenter_config(tiny()).visual.band_names == tiny().bands


def test_positions_are_resampled_as_torch_does_with_a_scale():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    table = np.random.default_rng(0).normal(size=(16 * 16, 5)).astype(np.float32)
    grid = torch.from_numpy(table.reshape(1, 16, 16, 5).transpose(0, 3, 1, 2))
    for h, w in ((36, 36), (6, 16), (32, 8)):
        wanted = torch.nn.functional.interpolate(
            grid, scale_factor=((h + 0.1) / 16, (w + 0.1) / 16), mode="bicubic", recompute_scale_factor=False
        )
        ours = resample_table(jnp.asarray(table), h, w, offset=0.1)
        np.testing.assert_allclose(ours, wanted.numpy()[0].transpose(1, 2, 0).reshape(h * w, 5), atol=1e-5)
    np.testing.assert_array_equal(resample_table(jnp.asarray(table), 16, 16, offset=0.1), table)
    difference = np.abs(bicubic_matrix(4, 5, offset=0.1) - bicubic_matrix(4, 5)).max()
    assert round(difference, 3) == 0.057


def test_digital_numbers_to_tokens():
    """The published window of Level-2A, on twelve bands: what is far outside it is clipped."""
    settings = segmenter_config(tiny_softcon(LEVEL_2A, "softcon_l2a"))
    segmenter = random_segmenter(settings)
    low, width = np.array([STATISTICS["softcon_l2a"][band] for band in LEVEL_2A]).T
    pixels = np.random.default_rng(0).uniform(low, low + width, (1, 32, 32, 12)).astype(np.float32)
    normalised = np.asarray(segmenter.normalise(jnp.asarray(pixels)), np.float32)
    assert normalised.min() > -1e-5
    assert normalised.max() < 1 + 1e-5

    def tokens(pixels):
        return segmenter.backbone.visual.embed(segmenter.normalise(jnp.asarray(pixels)))

    bright, brighter = (np.broadcast_to(low + factor * width, pixels.shape) for factor in (2, 9))
    np.testing.assert_array_equal(tokens(bright), tokens(brighter))
    assert tokens(pixels).shape == (1, 1 + 16, 16)
    assert segmenter.backbone.visual.patch_kernel.shape == (8, 8, 13, 16)
    assert jax.eval_shape(segmenter.scores, pixels).shape == (1, 32, 32, 5)
