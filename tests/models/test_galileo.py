"""Galileo's encoder against its formulas in NumPy and its authors' numbers; groups, sensors and errors."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

from spectralmoe_jax.ablation.grid import load_grid
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.overrides import apply_settings
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.build import abstract_segmenter, for_sensor, make_segmenter, segmenter_config
from spectralmoe_jax.models.encoders.encoder import all_layers, every_layer
from spectralmoe_jax.models.encoders.galileo import (
    GalileoEncoder,
    channels_of,
    describe_inputs,
    require_reflectance,
)
from spectralmoe_jax.models.windows import OverlappingWindows
from spectralmoe_jax.parameters import fill, join, leaves, split
from spectralmoe_jax.parity.comparison import read_arrays
from spectralmoe_jax.parity.galileo_goldens import verify_encoder
from spectralmoe_jax.parity.verify import check_folder
from spectralmoe_jax.training.train import check_sizes
from spectralmoe_jax.weights.encoder_file import fill_encoder, infer_config
from spectralmoe_jax.weights.format_tables import GALILEO, encoder_rules
from spectralmoe_jax.weights.formats import recognise
from spectralmoe_jax.weights.name_rules import write_tensors
from spectralmoe_jax.weights.reading import open_weight_file
from tests.models import galileo_formulas
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter

ALL = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
SIX = ("B2", "B3", "B4", "B8", "B11", "B12")
SENTINEL2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
LANDSAT = ("blue", "green", "red", "nir", "swir16", "swir22")


def encoder_of(bands, *, patch=4, window=8, width=32, **fields):
    config = EncoderConfig(
        kind="galileo", width=width, layers=2, heads=2, patch_size=patch, window=window,
        channels=tuple(bands), in_channels=len(bands), **{"month": 4, "resolution": 10.0, **fields},
    )  # fmt: skip
    encoder = GalileoEncoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    tables = ("time_table", "month_table")
    fill(encoder, {
        path: 0.2 * rng.normal(size=leaf.shape) + (path[-1] == "scale")
        for path, leaf in leaves(encoder).items() if path[0] not in tables
    })  # fmt: skip
    return encoder


def state_of(encoder):
    """The encoder's weights under the names of its authors."""
    return write_tensors(encoder_rules(GALILEO, encoder.config), leaves(encoder))


def stages(encoder, image):
    tokens = encoder.embed(image)
    blocks = every_layer(encoder, tokens, *encoder.grid(image.shape))
    return [tokens, *blocks, encoder.norm(blocks[-1])]


def reflectance(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 0.6, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("bands", "patch", "sides", "resolution"),
    [(ALL, 4, (3, 2), 10.0), (SIX, 3, (2, 2), 30.0), (ALL, 8, (2, 1), 20.0)],
)
def test_every_stage_equals_the_formulas(bands, patch, sides, resolution):
    encoder = encoder_of(bands, patch=patch, resolution=resolution)
    image = reflectance(1, sides[0] * patch, sides[1] * patch, len(bands))
    image[0, :patch, :patch] = 0  # no data: the vegetation index is zero there
    with jax.default_matmul_precision("highest"):
        ours = stages(encoder, jnp.asarray(image))
    wanted = galileo_formulas.features(
        state_of(encoder), image[0].astype(np.float64) * 10000, bands,
        patch=patch, month=3, resolution=resolution, heads=2, layers=2,
    )  # fmt: skip
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(x)[0], y.reshape(-1, 32), atol=2e-5 * np.abs(y).max())


def test_windows_are_images_of_their_own():
    """Attention and positions of a larger image are those of its windows, each encoded alone."""
    encoder = encoder_of(SIX, patch=2, window=2)
    image = jnp.asarray(reflectance(1, 8, 4, 6))  # 4 x 2 places: two windows
    blocks = all_layers(encoder, image)[-1].reshape(4, 2, 4, 32)
    for first in (0, 2):
        alone = all_layers(encoder, image[:, 2 * first : 2 * first + 4])[-1].reshape(2, 2, 4, 32)
        np.testing.assert_allclose(blocks[first : first + 2], alone, atol=1e-5)


def test_authors_numbers(reference):
    """Their weights do not travel with the tests."""
    path = reference / "encoder_goldens" / "galileo_nano" / "s2_real_6band_16_p4.npz"
    checks = verify_encoder(path, read_arrays(path, texts=("bands", "visible_groups")))
    assert len(checks) == 7
    assert not [check for check in checks if not check.ok]


@pytest.mark.slow
def test_all_of_the_authors_numbers(reference):
    checks = check_folder(reference / "encoder_goldens" / "galileo_nano")
    assert len(checks) == 58
    assert not [check for check in checks if not check.ok]


def test_a_wrong_weight_is_a_miss(reference, tmp_path):
    folder = reference / "encoder_goldens" / "galileo_nano"
    shutil.copy(folder / "s2_real_6band_16_p4.npz", tmp_path)
    file = open_weight_file(folder / "weights.safetensors")
    tensors = {name: np.array(file[name]) for name in file}
    tensors["blocks.2.attn.q.weight"] *= 1.01
    save_file(tensors, tmp_path / "weights.safetensors")
    missed = {check.quantity.split()[0] for check in check_folder(tmp_path) if not check.ok}
    assert missed == {"block2", "block3", "final_norm"}


def test_channels_by_name_on_every_sensor():
    assert channels_of(SENTINEL2, "sentinel2") == ALL
    assert channels_of(("B1", "B3", "B9", "B12"), "sentinel2") == ("", "B3", "", "B12")
    assert channels_of(LANDSAT, "landsat5") == SIX
    # B4 is near infrared on Landsat 5, red on Landsat 8
    assert channels_of(("B4",), "landsat5") == ("B8",)
    assert channels_of(("B4", "thermal"), "landsat8") == ("B4", "")
    assert channels_of(LANDSAT, None) == SIX


def test_groups_with_a_missing_band_are_dropped():
    assert encoder_of(SIX).config.groups == ("S2_RGB", "S2_NIR_10m", "S2_SWIR", "NDVI")
    assert encoder_of(SIX, ndvi=False).config.groups == ("S2_RGB", "S2_NIR_10m", "S2_SWIR")
    without_red = tuple(name for name in SIX if name != "B4")
    config = encoder_of(without_red).config
    assert config.groups == ("S2_NIR_10m", "S2_SWIR")
    assert describe_inputs(config, is_month_known=True) == (
        "galileo sees S2_NIR_10m, S2_SWIR; left out, for lack of bands: S2_RGB (B4), "
        "S2_Red_Edge (B5, B6, B7), S2_NIR_20m (B8A), NDVI (B4); month 4, pixels of 10 m"
    )


@pytest.mark.parametrize(("name", "values"), [("nano", 1_037_856), ("tiny", None), ("base", None)])
def test_published_sizes(name, values):
    config = EncoderConfig(**preset(f"galileo_{name}", ""), channels=ALL, in_channels=10, resolution=10.0)

    def make(image):
        """The encoder, and its tokens."""
        encoder = make_encoder(config, rngs=nnx.Rngs(0))
        return nnx.state(encoder), encoder.embed(image)

    state, tokens = jax.eval_shape(make, jnp.zeros((1, 64, 64, 10)))
    assert tokens.shape == (1, 16 * 16 * 6, config.width)
    if values is not None:
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) == values


def weights_folder(path: Path, encoder) -> Path:
    """A folder as the authors publish it, in safetensors."""
    path.mkdir()
    state = {name: np.ascontiguousarray(value) for name, value in state_of(encoder).items()}
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text('{"model": {"encoder": {"num_heads": 2}}}')
    return path


def test_weights_there_and_back(tmp_path):
    encoder = encoder_of(SIX)
    folder = weights_folder(tmp_path / "theirs", encoder)
    assert main(["convert", str(folder), str(tmp_path / "ours.safetensors")]) == 0
    for spec in (folder, tmp_path / "ours.safetensors"):
        again = GalileoEncoder(encoder.config, rngs=nnx.Rngs(9))
        fill_encoder(again, open_weight_file(spec))
        written, wanted = state_of(again), state_of(encoder)
        assert written.keys() == wanted.keys()
        assert all(np.array_equal(written[name], wanted[name]) for name in wanted)


def test_authors_folder_and_wrapped_names(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    encoder = encoder_of(SIX)
    folder = weights_folder(tmp_path / "theirs", encoder)
    (folder / "model.safetensors").unlink()
    state = {name: torch.tensor(np.array(value)) for name, value in state_of(encoder).items()}
    torch.save(
        {name.replace("attn.", "attn.backbone."): x for name, x in state.items()}, folder / "encoder.pt"
    )
    again = GalileoEncoder(encoder.config, rngs=nnx.Rngs(9))
    fill_encoder(again, open_weight_file(folder))
    assert all(np.array_equal(x, leaves(encoder)[path]) for path, x in leaves(again).items())


def test_files_that_do_not_fit(tmp_path):
    encoder = encoder_of(SIX)
    state = state_of(encoder)
    save_file(
        {n: np.ascontiguousarray(v) for n, v in state.items() if n != "static_embed.LS.bias"},
        tmp_path / "missing.safetensors",
    )
    with pytest.raises(UserError, match=r"static_embed\.LS\.bias"):
        fill_encoder(encoder, open_weight_file(tmp_path / "missing.safetensors"))
    folder = weights_folder(tmp_path / "theirs", encoder)
    wider = encoder_of(SIX, width=64)
    with pytest.raises(UserError, match=r"holds width 32, config\.model\.visual\.width is 64"):
        fill_encoder(wider, open_weight_file(folder))


def test_published_weights_are_recognised(reference):
    file = open_weight_file(reference.parent / "weights" / "galileo_nano")
    fields, config = infer_config(recognise(file))
    assert (fields["kind"], config.width, config.layers, config.heads) == ("galileo", 128, 4, 8)


def tiny_galileo(bands=LANDSAT, sensor="landsat5", **overrides):
    return tiny(**{
        "bands": tuple(bands), "sensor": sensor, "model.pixel_mean": (), "model.pixel_std": (),
        "model.visual.kind": "galileo", "model.visual.width": 32, "model.visual.patch_size": 4,
        "model.visual.window": 4, "model.visual.normalise_maps": True, "model.visual.stored_as": "unit",
        "model.visual.trainable": False, "data.crop": 32,
    } | overrides)  # fmt: skip


def test_adapter_refines_the_mean_or_each_token():
    """The change of a place is added to all of its tokens; `each` is the adapter on every group alone."""
    settings = segmenter_config(tiny_galileo())
    backbone = random_segmenter(settings).backbone
    weights = jax.tree.map(lambda leaf: leaf[0], backbone.adapter.stacked())
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16 * 4, 32)), jnp.float32)
    grouped = tokens.reshape(2, 16, 4, 32)

    refine = jax.jit(backbone._refine, static_argnums=4)
    layer = jax.jit(backbone.adapter.layer, static_argnums=4)
    change = refine(weights, tokens, None, None, (4, 4)).tokens.reshape(grouped.shape) - grouped
    alone = layer(weights, grouped.mean(axis=2), None, None, (4, 4)).tokens
    wanted = (alone - grouped.mean(axis=2))[:, :, None]
    np.testing.assert_allclose(change, jnp.broadcast_to(wanted, change.shape), atol=1e-5)
    assert float(jnp.abs(wanted).max()) > 1e-2

    each = segmenter_config(tiny_galileo(**{"model.adapter.token_groups": "each"}))
    refine = jax.jit(random_segmenter(each).backbone._refine, static_argnums=4)
    out = refine(weights, tokens, None, None, (4, 4))
    for group in range(4):
        alone = layer(weights, grouped[:, :, group], None, None, (4, 4))
        np.testing.assert_allclose(out.tokens.reshape(grouped.shape)[:, :, group], alone.tokens, atol=1e-5)
    assert out.experts.shape == (1, 2, 16)


def test_prompts_are_part_of_every_window():
    """An image of two windows with prompts: each window with the prompts is what it is alone."""
    settings = segmenter_config(tiny_galileo(**{
        "model.adapter": {"kind": "vpt", "num_prompts": 3}, "model.head": {"kind": "linear"},
    }))  # fmt: skip
    encode = jax.jit(random_segmenter(settings).features)
    pixels = jnp.asarray(reflectance(2, 32, 16, 6))
    both, plain = encode(pixels), random_segmenter(settings)
    for first in (0, 4):
        alone = encode(pixels[:, 4 * first : 4 * first + 16])
        np.testing.assert_allclose(both.maps[-1][:, first : first + 4], alone.maps[-1], atol=1e-5)
    plain.backbone.adapter.prompts[...] = 0.0 * plain.backbone.adapter.prompts[...]
    without = jax.jit(plain.features)(pixels).maps[-1]
    assert float(jnp.abs(both.maps[-1] - without).max()) > 1e-2


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_the_experts_of_every_layer_learn(remat):
    settings = segmenter_config(tiny_galileo(**{"model.remat": remat}))
    segmenter = random_segmenter(settings)
    pixels = jnp.asarray(reflectance(1, 32, 32, 6))
    graph, trainable, rest = nnx.split(segmenter, nnx.Param, ...)

    def objective(trainable):
        features = nnx.merge(graph, trainable, rest).features(pixels)
        return sum(jnp.sum(x**2) for x in features.maps)

    slopes = dict(nnx.to_flat_state(jax.jit(jax.grad(objective))(trainable)))
    for name in ("experts_a", "experts_b"):
        slope = slopes["backbone", "adapter", name][...]
        assert all(float(jnp.abs(layer).max()) > 0 for layer in slope)


def test_features_are_the_mean_over_overlapping_windows():
    """An image of 7 x 5 patches, in windows of 4 that overlap by 2: the mean of windows computed alone."""
    settings = segmenter_config(tiny_galileo(**{"model.visual.window_overlap": 2}))
    segmenter = random_segmenter(settings)
    alone = for_sensor(segmenter, segmenter_config(tiny_galileo()))
    pixels = jnp.asarray(reflectance(2, 28, 20, 6))
    found, encode = jax.jit(segmenter.features)(pixels), jax.jit(alone.features)
    total, count = np.zeros((2, 7, 5, 32)), np.zeros((7, 5, 1))
    layers, modalities = found.experts.shape[:2]
    experts = np.full((layers, modalities, 2, 7, 5), -1)
    for top in (0, 2, 3):
        for left in (0, 1):
            window = pixels[:, 4 * top : 4 * top + 16, 4 * left : 4 * left + 16]
            inside = np.s_[..., top : top + 4, left : left + 4]
            one = encode(window)
            total[:, top : top + 4, left : left + 4] += one.maps[-1]
            count[top : top + 4, left : left + 4] += 1
            own = np.reshape(one.experts, (layers, modalities, 2, 4, 4))
            experts[inside] = np.where(experts[inside] < 0, own, experts[inside])  # of the first window
    np.testing.assert_allclose(found.maps[-1], total / count, atol=1e-5)
    np.testing.assert_array_equal(found.experts, experts.reshape(layers, modalities, 2, 35))
    assert len(np.unique(experts)) > 1


def test_windows_of_other_grids():
    """A grid that is shorter than a window, on one side or both; features of places are places."""
    for grid, windows in {(3, 9): 3, (4, 4): 1, (2, 3): 1, (9, 5): 6}.items():
        cut = OverlappingWindows(grid, 4, 1, patch=2)
        assert cut.count == windows
        places = np.arange(grid[0] * grid[1]).reshape(1, *grid, 1)
        pixels = places.repeat(2, axis=1).repeat(2, axis=2)
        found = cut.cut(jnp.asarray(pixels))
        assert found.shape == (windows, 2 * min(grid[0], 4), 2 * min(grid[1], 4), 1)
        maps = found[:, ::2, ::2]
        np.testing.assert_array_equal(cut.mean(maps.astype(jnp.float32)), places)
        picked = cut.pick(maps.reshape(windows, -1))
        np.testing.assert_array_equal(picked, places.reshape(1, -1))


@pytest.mark.parametrize("head", ["linear", pytest.param("pmt", marks=pytest.mark.slow)])
def test_gradients_pass_through_overlapping_windows(head):
    """With each head, rematerialised: those of the features, against finite differences."""
    settings = segmenter_config(tiny_galileo(**{
        "model.visual.window_overlap": 2, "model.remat": "layer", "model.adapter.zero_start": False,
        "model.head": {"kind": head},
    }))  # fmt: skip
    segmenter = make_segmenter(settings, seed=0)
    pixels = jnp.asarray(reflectance(1, 32, 24, 6))
    graph, trainable, rest = nnx.split(segmenter, nnx.Param, ...)

    @jax.jit
    def objective(trainable):
        out = nnx.merge(graph, trainable, rest)(segmenter.normalise(pixels))
        logits = out.logits if head == "linear" else out.mask_logits[-1]
        return jnp.mean(jnp.sin(logits))

    gradient = jax.jit(jax.grad(objective))(trainable)
    norm = optax.tree.norm(gradient)
    step = 1e-2 / norm**2
    ahead = objective(jax.tree.map(lambda x, g: x + step * g, trainable, gradient))
    behind = objective(jax.tree.map(lambda x, g: x - step * g, trainable, gradient))
    assert float((ahead - behind) / (2e-2)) == pytest.approx(1, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("variant", load_grid("peers", "configs/cloud_shadow.py:galileo").variants)
def test_every_adapter_on_the_shipped_configuration(variant):
    """Scores of two windows, by their shape alone."""
    grid = load_grid("peers", "configs/cloud_shadow.py:galileo")
    config = load_config(grid.base).replaced(dict(grid.common))
    given = apply_settings(config.given, grid.variants[variant])
    settings = segmenter_config(RunConfig.from_given(given))
    pixels = jax.ShapeDtypeStruct((1, 32, 64, 6), jnp.float32)
    structure = abstract_segmenter(settings)
    found = jax.eval_shape(lambda t, f, x: join(structure, t, f).scores(x), *split(structure), pixels)
    assert found.shape == (1, 32, 64, 3)


def test_the_same_image_under_another_sensor_scores_the_same():
    """Other order of bands, other scale, other names: the segmenter of another sensor with its weights."""
    linear = {"model.head": {"kind": "linear"}}
    first = random_segmenter(segmenter_config(tiny_galileo(**linear)))
    order = [5, 3, 0, 1, 4, 2]
    names = tuple(("B02", "B03", "B04", "B08", "B11", "B12")[index] for index in order)
    settings = segmenter_config(tiny_galileo(
        names, "sentinel2",
        **linear, **{"model.visual.stored_as": "x10000+1000", "model.visual.resolution": 30.0},
    ))  # fmt: skip
    second = for_sensor(first, settings)
    pixels = reflectance(1, 32, 32, 6)
    stored = (pixels[..., order] * 10000 + 1000).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(second.scores)(jnp.asarray(stored)), jax.jit(first.scores)(jnp.asarray(pixels)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.visual.patch_size": 9}, r"patch_size = 9: must be at most 8"),
        ({"model.visual.month": 13}, r"month = 13: must be between 0 and 12"),
        ({"model.visual.window_overlap": 4}, r"window_overlap = 4: must be below window = 4"),
        ({"model.visual.width": 16}, r"width = 16: must be a multiple of 32"),
        ({"model.visual.stored_as": "uint8"}, r"stored_as = 'uint8': must be one of sensor, unit"),
        ({"model.pixel_mean": (0.0,) * 6}, r"pixel_std and pixel_statistics: galileo has its own statistics"),
        ({"bands": ("blue", "swir16")}, r"config\.bands = blue, swir16: galileo needs all bands of one"),
        ({"sensor": None}, r"resolution = 0\.0: give the metres along a pixel's edge"),
        (
            {"sensor": "generic", "model.visual.resolution": 10.0, "model.visual.stored_as": "sensor"},
            r"stored_as = 'sensor': say how files store",
        ),
    ],
)
def test_settings_that_cannot_be(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        segmenter_config(tiny_galileo(**overrides))
    assert "\n" not in str(caught.value)


def test_the_input_is_inspected_as_reflectance(tmp_path, capsys, shared_data):
    """`spectralmoe data` shows reflectance, and names the key where values cannot be that."""
    command = ["data", "configs/cloud_shadow.py:galileo", "--output", str(tmp_path / "sheet.png")]
    command += [f"--config.data.root={shared_data / 'cloudshadow'}", "--batches", "1"]
    assert main(command) == 0
    assert "stored_as" not in capsys.readouterr().out
    assert main([*command, "--config.model.visual.stored_as=x10000"]) == 0
    assert "check config.model.visual.stored_as" in " ".join(capsys.readouterr().out.split())


def test_a_crop_has_whole_windows():
    encoder = encoder_of(SIX, patch=4, window=4)
    with pytest.raises(UserError, match=r"8x6 patches does not divide into windows of 4: .* multiple of 16"):
        encoder.embed(jnp.zeros((1, 32, 24, 6)))
    with pytest.raises(UserError, match=r"window_overlap = 1: must .* 0 for encoders other than galileo"):
        EncoderConfig(**preset("sam_b", ""), window_overlap=1)
    given = {"data.crop": 24, "evaluate.window": 32, "evaluate.overlap": 0}
    with pytest.raises(UserError, match=r"data\.crop = 24: must be at most 16, a window of .* multiple"):
        check_sizes(tiny_galileo(**given))
    check_sizes(tiny_galileo(**given, **{"model.visual.window_overlap": 2}))


@pytest.mark.parametrize(
    ("stored", "scale", "offset", "right"),
    [
        (1.0, 1.0, 0.0, True), (1e4, 1e-4, 0.0, True), (1e4, 1.0, 0.0, False), (1.0, 1e-4, 0.0, False),
        (1.0, 2.75e-5, -0.2, False),
    ],
)  # fmt: skip
def test_values_that_cannot_be_reflectance(stored, scale, offset, right):
    pixels = reflectance(2, 16, 16, 6) * stored
    if right:
        assert require_reflectance(pixels, -offset / scale, 1 / scale)
        assert not require_reflectance(np.zeros_like(pixels), -offset / scale, 1 / scale)
        return
    with pytest.raises(UserError, match=r"stored_as: the images' values cannot be reflectance"):
        require_reflectance(pixels, -offset / scale, 1 / scale)
