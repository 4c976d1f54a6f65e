"""DOFA: patch embeddings from wavelengths, against torch and closed forms, and on real sensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.readers.raster_file import read_pixels
from data_pipelines.readers.raster_header import read_header, wavelengths_of_file
from spectralmoe_jax.checkpoints.same_model import model_part
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.predict_step import make_predict
from spectralmoe_jax.inference.segmenter_weights import load_trained
from spectralmoe_jax.inference.sliding_window import predict_image
from spectralmoe_jax.models.build import abstract_segmenter, for_bands, segmenter_config
from spectralmoe_jax.models.encoders.dofa import HEADS, HIDDEN, TOKEN_WIDTH, KernelGenerator, encode
from spectralmoe_jax.parameters import join, leaves, split
from spectralmoe_jax.sensors import SENSORS, wavelengths
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter

RGB = (0.665, 0.56, 0.49)


def tiny_dofa(bands, sensor=None, **overrides):
    return tiny(**{
        "model.visual.kind": "dofa", "model.visual.storage_tokens": 0, "model.visual.trainable": False,
        "model.visual.patch_size": 8, "model.visual.table_size": 4, "bands": tuple(bands), "sensor": sensor,
        "model.pixel_mean": (0.0,) * len(bands), "model.pixel_std": (1.0,) * len(bands),
    } | {f"model.visual.{key}": value for key, value in overrides.items()})  # fmt: skip


@pytest.fixture(scope="module")
def generator():
    return KernelGenerator(4, 6, rngs=nnx.Rngs(0))


def test_wavelengths_are_encoded_as_sines_and_cosines():
    nanometres = np.array([443.0, 2202.4])
    angles = nanometres[:, None] / 10000 ** (np.arange(64) / 64)
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(encode(jnp.asarray(nanometres)), wanted, atol=2e-4)  # float32 of 2202 radians


def test_layer_equals_torch(generator):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    layer = torch.nn.TransformerEncoderLayer(
        TOKEN_WIDTH, HEADS, dim_feedforward=HIDDEN, activation="gelu", dropout=0.0
    ).eval()
    ours = generator.layer

    def put(parameter, value):
        parameter.data = torch.from_numpy(np.array(value))

    put(layer.self_attn.in_proj_weight, ours.qkv.kernel[...].T)
    put(layer.self_attn.in_proj_bias, ours.qkv.bias[...])
    for theirs, mine in (
        (layer.self_attn.out_proj, ours.out), (layer.linear1, ours.mlp_in), (layer.linear2, ours.mlp_out),
    ):  # fmt: skip
        put(theirs.weight, mine.kernel[...].T)
        put(theirs.bias, mine.bias[...])
    x = np.random.default_rng(0).normal(size=(9, TOKEN_WIDTH)).astype(np.float32)
    with torch.no_grad():
        wanted = layer(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours(jnp.asarray(x)), wanted, atol=1e-5)


def test_kernels_follow_their_bands(generator):
    """Another order of the bands is another order of the kernels, and nothing else."""
    bands = np.array([0.49, 0.56, 0.665, 0.83, 2.2])
    kernel, bias = generator(bands)
    order = np.array([3, 0, 4, 2, 1])
    other_kernel, other_bias = generator(bands[order])
    np.testing.assert_allclose(other_kernel, kernel[:, :, order], atol=1e-6)
    np.testing.assert_allclose(other_bias, bias, atol=1e-6)
    assert np.abs(np.diff(kernel, axis=2)).max() > 1e-4


def test_wavelengths_come_from_the_sensor():
    config = tiny_dofa(("blue", "B04", "B8A"), "sentinel2")
    assert segmenter_config(config).visual.wavelengths == (0.4924, 0.6646, 0.8647)


@pytest.mark.parametrize("sensor", SENSORS)
def test_sensor_tables_are_consistent(sensor):
    """Every band is in micrometres, narrower than its centre, and named once."""
    bands = SENSORS[sensor].bands
    names = [name.lower() for band in bands for name in (band.name, *band.aliases)]
    assert len(set(names)) == len(names)
    assert all(0.36 < band.centre < 13 and 0 < band.width < band.centre for band in bands)
    red, green, blue = wavelengths(SENSORS[sensor].rgb, sensor)
    assert blue < green < red


@pytest.mark.parametrize(
    ("bands", "wavelengths_given", "message"),
    [
        (("blue", "green"), RGB, r"visual\.wavelengths = .*: must be one wavelength for each of the 2 bands"),
        (("blue", "green", "red"), (490.0, 560.0, 665.0), r"0\.49 for blue, not 490"),
        (("blue", "violet"), (), r"config\.bands: the wavelength of 'violet' is not known"),
    ],
)
def test_bad_wavelengths(bands, wavelengths_given, message):
    with pytest.raises(UserError, match=message):
        segmenter_config(tiny_dofa(bands, wavelengths=wavelengths_given))


def test_unknown_sensor():
    with pytest.raises(UserError, match=r"config\.sensor = 'sentinel4': must be one of sentinel2"):
        wavelengths(("red",), "sentinel4")


def test_other_encoders_keep_their_bands():
    segmenter = abstract_segmenter(segmenter_config(tiny()))
    with pytest.raises(UserError, match="belongs to its own 3 bands"):
        for_bands(segmenter, RGB, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)


def test_the_kernel_generator_is_not_used_in_a_step():
    """Neither of a compiled forward pass: its weights are arguments that nothing reads."""
    segmenter = random_segmenter(segmenter_config(tiny_dofa(("blue", "green", "red"))))
    trainable, frozen = split(segmenter)
    assert "generator" not in trainable["backbone"].get("visual", {})
    frozen["backbone"]["visual"]["generator"] = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan), frozen["backbone"]["visual"]["generator"]
    )
    predict = jax.jit(lambda *weights: join(segmenter, *weights).scores(np.ones((1, 32, 32, 3), np.uint8)))
    scores = predict(trainable, frozen)
    assert np.isfinite(scores).all()


def statistics(images):
    pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images])
    return tuple(map(float, pixels.mean(0))), tuple(map(float, pixels.std(0) + 1e-3))


@pytest.mark.slow
def test_one_model_on_enmap_and_on_sentinel2(shared_data):
    """The same parameters on 224 bands, wavelengths from the file, and on 13, wavelengths from the table."""
    tiles = sorted((shared_data / "enmap" / "images").glob("*.tif"))
    scenes = sorted((shared_data / "sentinel2").glob("scene_*.tif"))
    enmap = [read_pixels(tile)[0] for tile in tiles]
    sentinel = [read_pixels(scene)[0] for scene in scenes]
    centres = wavelengths_of_file(tiles[0])
    assert len(centres) == 224
    assert all(wavelengths_of_file(tile) == centres for tile in tiles)
    assert centres[0] == pytest.approx(0.41824)
    assert 2.44 < centres[-1] < 2.45

    config = segmenter_config(tiny_dofa([f"band {i}" for i in range(224)], wavelengths=centres))
    mean, std = statistics(enmap)
    first = random_segmenter(dataclasses.replace(config, pixel_mean=mean, pixel_std=std))
    scores = make_predict(first)(np.stack(enmap[:2]))
    assert scores.shape == (2, 32, 32, 5)
    assert np.isfinite(scores).all()

    names = [name for name in read_header(scenes[0]).descriptions if name]
    mean, std = statistics(sentinel)
    second = for_bands(first, wavelengths(names, "sentinel2"), pixel_mean=mean, pixel_std=std)
    result = predict_image(sentinel[0], make_predict(second), EvaluateConfig(window=96, overlap=32))
    assert result.shape == (101, 100, 5)
    assert np.isfinite(result).all()
    own = {("backbone", "visual", "patch_kernel"), ("backbone", "visual", "patch_bias"),
           ("pixel_mean",), ("pixel_std",)}  # fmt: skip
    before, after = leaves(first), leaves(second)
    assert {path for path in before if before[path] is not after[path]} == own
    assert after["backbone", "visual", "patch_kernel"].shape == (8, 8, 13, 16)


def test_published_sizes():
    assert EncoderConfig(kind="dofa", in_channels=3, wavelengths=RGB).prefix_tokens == 1


def test_a_run_predicts_on_other_sensors(tmp_path):
    """A checkpoint of three bands predicts on thirteen; for other encoders bands are part of the model."""
    trained = tiny_dofa(("blue", "green", "red"))
    parameters, _ = split(random_segmenter(segmenter_config(trained)))
    with CheckpointStore(tmp_path, trained) as store:
        store.save(1, parameters, {"count": np.zeros(())})
    names = [band.name for band in SENSORS["sentinel2"].bands]
    other = tiny_dofa(names, "sentinel2")
    loaded = load_trained(tmp_path, other)
    assert loaded.config.visual.in_channels == 13
    restored, _ = split(loaded)
    jax.tree.map(np.testing.assert_array_equal, restored, parameters)

    assert model_part(tiny(bands=("nir", "red", "green")).given) != model_part(tiny().given)
