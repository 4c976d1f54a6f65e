"""Copernicus-FM: patch kernels of any size, metadata, bandwidths, grids and other sensors.

`tests/parity/test_encoder_goldens.py` compares every step with the authors' code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.checkpoints.same_model import model_part
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.build import for_bands, segmenter_config
from spectralmoe_jax.models.encoders.copernicus_fm import BASE_PATCH, Metadata, fourier_code
from spectralmoe_jax.models.positions import patch_matrix
from spectralmoe_jax.parameters import leaves, with_values
from spectralmoe_jax.weights.encoder_file import GENERATED_LEAVES
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter

BANDS = {"wavelengths": (0.49, 0.56, 0.665), "bandwidths": (0.065, 0.035, 0.03)}
SMALL = {"width": 32, "layers": 2, "heads": 4, "patch_size": 8, "table_size": 4, "norm_eps": 1e-6}


def tiny_copernicus(bands=("B02", "B03", "B04"), **overrides):
    return tiny(**{
        "model.visual.kind": "copernicus_fm", "model.visual.storage_tokens": 0,
        "model.visual.trainable": False, "model.visual.table_size": 4, "bands": tuple(bands),
        "sensor": "sentinel2", "model.pixel_mean": (), "model.pixel_std": (),
        "model.pixel_statistics": "copernicus_fm",
    } | overrides)  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    """Makes an encoder from the same weights whatever its settings."""
    rng, values = np.random.default_rng(0), {}

    def make(**settings):
        config = EncoderConfig("copernicus_fm", **{**SMALL, **BANDS, **settings})
        abstract = nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))
        for path, leaf in leaves(abstract).items():
            if path not in values and path not in GENERATED_LEAVES:
                values[path] = jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
        made = with_values(abstract, values)
        generated = made.generator(config.wavelengths, config.bandwidths)
        return with_values(made, dict(zip(GENERATED_LEAVES, generated, strict=True)))

    return make


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 3)), jnp.float32)


def test_kernels_are_resized_as_the_pseudo_inverse_of_torchs_resize():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    for size in (4, 8, 14, 32):
        identity = torch.eye(BASE_PATCH, dtype=torch.float64)[None, None]  # resized along its columns
        shape = (BASE_PATCH, size)
        resize = torch.nn.functional.interpolate(identity, shape, mode="bicubic", antialias=True)[
            0, 0
        ].numpy()
        np.testing.assert_allclose(patch_matrix(BASE_PATCH, size), np.linalg.pinv(resize), atol=1e-6)
    assert patch_matrix(BASE_PATCH, BASE_PATCH) == pytest.approx(np.eye(BASE_PATCH))


def test_a_larger_patch_sees_what_the_smaller_one_saw(encoder):
    """The products of a resized kernel with resized patches are those before, where nothing is lost."""
    small, large = (encoder(patch_size=size).generator(*BANDS.values())[0] for size in (16, 32))
    resize = np.linalg.pinv(patch_matrix(16, 32)).T  # (32, 16), to the larger patch
    patch = np.random.default_rng(0).normal(size=(16, 16))
    wanted = np.einsum("ij,ijcd->cd", patch, small)
    found = np.einsum("ij,ijcd->cd", resize @ patch @ resize.T, large)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_code_of_a_band(encoder):
    """Sine of each wavelength of the code, then cosine, of the centre and of the width, in nanometres."""
    width = encoder().generator.token_width
    periods = [[100 * 1e7 ** (j / 63) for j in range(64)], [1e9 ** (j / 63) for j in range(64)]]
    wanted = sum(
        np.concatenate([np.sin(2 * np.pi * x / np.array(p)), np.cos(2 * np.pi * x / np.array(p))])
        for x, p in zip((490.0, 65.0), periods, strict=True)
    )
    assert width == 128
    np.testing.assert_allclose(encoder().generator.codes((0.49,), (0.065,))[0], wanted, atol=1e-6)
    assert fourier_code(np.array([[1.0, 2.0]]), 1, 10, 6).shape == (1, 2, 6)


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [((32, 32), 16, (2, 2)), ((32, 48), 16, (2, 3)), ((30, 30), 2, (16, 16)), ((15, 33), 16, (1, 2))],
)
def test_patches_are_those_of_a_padded_convolution(encoder, size, patch, grid):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    ours = encoder(patch_size=patch)
    assert ours.grid((1, *size, 3)) == grid
    image = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    kernel, bias = (torch.from_numpy(np.array(x[...])) for x in (ours.patch_kernel, ours.patch_bias))
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(image.transpose(0, 3, 1, 2)), kernel.permute(3, 2, 0, 1), bias, patch, padding=1
    )
    assert tuple(wanted.shape[2:]) == grid
    wanted = wanted.numpy().reshape(32, -1).T
    error = np.abs(np.asarray(ours.patches(jnp.asarray(image)))[0] - wanted).max()
    assert error < 1e-5 * np.abs(wanted).max()


def test_an_image_smaller_than_a_patch(encoder):
    with pytest.raises(UserError, match="an image of 5x8 pixels is smaller than a patch of 8"):
        encoder().grid((1, 5, 8, 3))


def test_a_segmenter_drops_no_pixels():
    segmenter = random_segmenter(segmenter_config(tiny_copernicus()))
    with pytest.raises(UserError, match="an image of 36x32 pixels does not divide into patches of 8"):
        jax.eval_shape(segmenter.scores, np.zeros((1, 36, 32, 3), np.uint16))


def test_grids_that_are_not_square(encoder, image):
    """Every patch embedding is that of a square image, and positions are resampled along each axis."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    whole = encoder().patches(image).reshape(2, 4, 4, 32)
    part = encoder().patches(image[:, :17]).reshape(2, 2, 4, 32)
    np.testing.assert_allclose(part, whole[:, :2], atol=1e-5)
    table = np.array(encoder().position_table[...])
    grid = torch.from_numpy(table[1:].reshape(1, 4, 4, 32).transpose(0, 3, 1, 2))
    wanted = torch.nn.functional.interpolate(grid, (2, 7), mode="bicubic", antialias=True)
    positions = encoder().positions(2, 7)
    np.testing.assert_allclose(positions[1:].T, wanted.numpy().reshape(32, 14), atol=1e-5)
    np.testing.assert_array_equal(positions[:1], table[:1])


@pytest.mark.slow
def test_metadata_of_the_configuration(encoder, image):
    """What is not given is replaced by the learned token; what is given has its code, for all tokens."""
    plain = encoder().embed(image)
    width, tokens = 32, leaves(encoder())
    expected = {
        "location": fourier_code(np.array([193.4, 142.5]), 1e-4, 720, 16).reshape(-1),
        "area": fourier_code(np.array((8 * 60 / 1000) ** 2), 1e-3, 5.1e8, width),
        "date": fourier_code(np.array(18628.0), 1, 365.25, width),
    }
    given = {"location": {"location": (13.4, 52.5)}, "area": {"resolution": 60.0}, "date": {"days": 18628.0}}
    for kind, settings in given.items():
        kernel = tokens["metadata", kind, "linear", "kernel"]
        change = (expected[kind] - tokens["metadata", kind, "token"]) @ kernel
        with_it = encoder(**settings).embed(image)
        np.testing.assert_allclose(with_it - plain, jnp.broadcast_to(change, plain.shape), atol=2e-4)
    each = encoder().embed(image, Metadata(days=np.array([18628.0, 0.0])))
    np.testing.assert_allclose(each[0], encoder(days=18628.0).embed(image)[0], atol=1e-5)
    assert np.abs(each[1] - each[0]).max() > 0.1


def test_bandwidths_come_from_the_sensor():
    visual = segmenter_config(tiny_copernicus()).visual
    assert visual.wavelengths == (0.4924, 0.5598, 0.6646)
    assert visual.bandwidths == (0.066, 0.036, 0.031)
    given = segmenter_config(tiny_copernicus(**{"model.visual.bandwidths": (0.1, 0.2, 0.3)})).visual
    assert given.bandwidths == (0.1, 0.2, 0.3)
    radar = EncoderConfig("copernicus_fm", in_channels=1, wavelengths=(5e4,), bandwidths=(1e6,))
    assert radar.wavelengths == (5e4,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wavelengths": (0.5, 0.6)}, r"visual\.wavelengths = .*: must be one wavelength for each of the 3"),
        ({"bandwidths": (0.03,)}, r"visual\.bandwidths = .*: must be one bandwidth for each of the 3 bands"),
        ({"wavelengths": (490.0, 560.0, 665.0)}, r"or of radar \(0\.49 for blue, not 490\)"),
        ({"bandwidths": (65.0, 35.0, 30.0)}, r"visual\.bandwidths = .*\(0\.065 for blue, not 65\)"),
        ({"location": (200.0, 0.0)}, r"visual\.location = \(200\.0, 0\.0\): must be longitude, -180 to 180"),
        ({"resolution": 0.2}, r"visual\.resolution = 0\.2: must give patches of 0\.001 to 5\.1e\+08 square"),
        ({"resolution": -1.0}, r"visual\.resolution = -1\.0: must be at least 0"),
        ({"location": (200.0,)}, r"visual\.location = \(200\.0,\): must have 2 elements"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message) as error:
        segmenter_config(tiny_copernicus(**{f"model.visual.{key}": x for key, x in settings.items()}))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_one_model_on_two_sensors():
    """The same parameters on three and on four bands; runs on both share checkpoints."""
    config, other = tiny_copernicus(), tiny_copernicus(("B02", "B03", "B04", "B08"))
    first, settings = random_segmenter(segmenter_config(config)), segmenter_config(other)
    second = for_bands(
        first, settings.visual.wavelengths, bandwidths=settings.visual.bandwidths,
        pixel_mean=settings.pixel_mean, pixel_std=settings.pixel_std, depth_bands=settings.depth_bands,
    )  # fmt: skip
    assert second.config == dataclasses.replace(
        settings, visual=dataclasses.replace(settings.visual, band_names=first.config.visual.band_names)
    )
    kernels = [part.backbone.visual.patch_kernel[...] for part in (first, second)]
    assert [kernel.shape for kernel in kernels] == [(8, 8, 3, 16), (8, 8, 4, 16)]
    visual = first.backbone.visual
    made = visual.generator(settings.visual.wavelengths, settings.visual.bandwidths)[0]
    np.testing.assert_allclose(kernels[1], made, atol=1e-6)
    assert model_part(config.given) == model_part(other.given)
    assert jax.eval_shape(second.scores, np.zeros((1, 32, 32, 4), np.uint16)).shape == (1, 32, 32, 5)
