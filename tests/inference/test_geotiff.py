"""Maps of scene files, read back with rasterio and compared with direct evaluation."""

import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from data_pipelines.readers.raster_file import read_pixels
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.geotiff import predict_scene
from spectralmoe_jax.inference.products import make_products

NAMES = ("red soil", "green field", "blue water")
PALETTE = ((200, 60, 20), (30, 160, 40), (20, 60, 200))
RGB = ("red", "green", "blue")
CONFIDENCE = make_products(("confidence",), NAMES)
SETTINGS = EvaluateConfig(window=32, overlap=9, batch_size=3)
TRANSFORM = from_origin(500_000, 4_000_000, 10, 10)


def scores_of(pixels):
    """Class = the largest band, positive scores."""
    return pixels[..., :3].astype(np.float32) + 1


def map_scene(input, output, predict=scores_of, **options):
    given = {"settings": SETTINGS, "names": NAMES, "palette": PALETTE, "bands": RGB, **options}
    return predict_scene(predict, input, output, **given)


def write_scene(path, pixels, **profile):
    """Pixels (H, W, C) as a GeoTIFF, or as what `driver` says."""
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": TRANSFORM, **profile}
    if profile["driver"] in ("PNG", "JPEG"):
        del profile["crs"], profile["transform"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", height=height, width=width, count=count, dtype=pixels.dtype, **profile
        ) as sink:
            sink.write(np.moveaxis(pixels, -1, 0))
    return path


def random_pixels(height=70, width=90, bands=3, seed=0):
    return np.random.default_rng(seed).integers(1, 255, (height, width, bands), dtype=np.uint8)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as dataset:
            return dataset.read(1)


@pytest.fixture
def folder(tmp_path):
    """Where the maps go: whatever is left behind here by a failure is seen."""
    path = tmp_path / "maps"
    path.mkdir()
    return path


def test_landsat_scene_keeps_its_georeference_and_nodata_area(shared_data, folder):
    path = shared_data / "scene" / "landsat_rgb_utm18n.tif"
    shapes = set()

    def predict(tiles):
        shapes.add((tiles.shape, tiles.dtype))
        assert tiles.any(axis=(1, 2, 3)).all(), "a window without data was predicted"
        return scores_of(tiles)

    summary = map_scene(
        path, folder / "map.tif", predict, settings=EvaluateConfig(128, 32, 4), preview=folder / "map.png",
        products=CONFIDENCE,
    )  # fmt: skip
    assert shapes == {((4, 128, 128, 3), np.dtype(np.uint8))}
    with rasterio.open(path) as scene, rasterio.open(folder / "map.tif") as made:
        assert (made.crs, made.transform, made.shape) == (scene.crs, scene.transform, scene.shape)
        assert (made.count, made.dtypes, made.nodata) == (1, ("uint8",), 255)
        valid = scene.dataset_mask() > 0
        assert 0.3 < valid.mean() < 0.9
        np.testing.assert_array_equal(made.dataset_mask() > 0, valid)
        expected = scene.read().argmax(0)
        np.testing.assert_array_equal(made.read(1)[valid], expected[valid])
        assert [made.colormap(1)[i][:3] for i in range(3)] == list(PALETTE)
        tags = made.tags()
        assert [tags[f"CLASS_{i}"] for i in range(3)] == list(NAMES)
        assert all(name in made.descriptions[0] for name in NAMES)
        assert made.profile["tiled"]
        assert made.profile["compress"] == "deflate"
        assert tags["AREA_OR_POINT"] == scene.tags()["AREA_OR_POINT"]
        pixels = scene.read().astype(np.float64) + 1
    with rasterio.open(folder / "map_confidence.tif") as confidence:
        assert confidence.dtypes == ("float32",)
        values = confidence.read(1)
    np.testing.assert_array_equal(np.isfinite(values), valid)
    np.testing.assert_allclose(values[valid], (pixels.max(0) / pixels.sum(0))[valid], rtol=1e-5)
    assert summary["shape"] == (718, 791)
    assert summary["pixels"] == valid.sum()
    for i, name in enumerate(NAMES):
        assert summary["shares"][name] == pytest.approx((expected[valid] == i).mean())
    assert sorted(p.name for p in folder.iterdir()) == ["map.png", "map.tif", "map_confidence.tif"]
    assert read(folder / "map.png").shape[1] > 800


@pytest.mark.parametrize(
    ("size", "setting"),
    [
        ((70, 90), (32, 9, 3)),
        ((70, 90), (32, 30, 5)),
        ((5, 90), (32, 0, 2)),
        ((600, 7), (16, 3, 8)),
        ((1, 1), (4, 3)),
    ],
)
def test_any_size_window_and_overlap(tmp_path, size, setting):
    pixels = random_pixels(*size)
    path = write_scene(tmp_path / "scene.tif", pixels)
    map_scene(path, tmp_path / "map.tif", settings=EvaluateConfig(*setting))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), pixels.argmax(-1))


def test_blends_like_an_image_in_memory(tmp_path):
    """A predictor that depends on the place in the window shows any shift of rows or weights."""
    from spectralmoe_jax.inference.sliding_window import predict_image

    bias = np.random.default_rng(1).uniform(0, 100, (32, 32, 3)).astype(np.float32)
    predict = lambda tiles: tiles.astype(np.float32) + bias
    pixels = random_pixels(150, 110)
    path = write_scene(tmp_path / "scene.tif", pixels)
    map_scene(path, tmp_path / "map.tif", predict, products=CONFIDENCE)
    blended = predict_image(pixels, predict, SETTINGS)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), blended.argmax(-1))
    share = blended.max(-1) / blended.sum(-1)
    np.testing.assert_allclose(read(tmp_path / "map_confidence.tif"), share, rtol=1e-5)


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_pictures_without_georeference(tmp_path, driver):
    path = write_scene(tmp_path / f"scene.{driver.lower()}", random_pixels(), driver=driver)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_scene(path, tmp_path / "map.tif", preview=tmp_path / "map.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as scene, rasterio.open(tmp_path / "map.tif") as made:
            assert made.crs is None
            assert made.transform == scene.transform
            np.testing.assert_array_equal(made.read(1), scene.read().argmax(0))


def test_long_gaps_without_data(tmp_path):
    pixels = random_pixels(500, 40)
    pixels[:3] = 0
    pixels[60:333] = 0
    pixels[450:] = 0
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=0)
    map_scene(path, tmp_path / "map.tif")
    expected = np.where(pixels.any(-1), pixels.argmax(-1), 255)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)


def test_scene_without_data_does_not_run_the_model(tmp_path):
    path = write_scene(tmp_path / "scene.tif", np.zeros((70, 50, 3), np.uint8), nodata=0)
    predict = lambda _: pytest.fail("predicted")
    assert map_scene(path, tmp_path / "map.tif", predict, preview=tmp_path / "m.png")["pixels"] == 0
    assert (read(tmp_path / "map.tif") == 255).all()


def test_alpha_band_is_the_nodata_area(tmp_path):
    pixels = random_pixels(bands=4)
    pixels[..., 3] = 255
    pixels[10:30, 20:50, 3] = 0
    path = write_scene(tmp_path / "scene.png", pixels, driver="PNG")
    map_scene(path, tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif") == 255, pixels[..., 3] == 0)


def test_fourth_model_band_is_not_read_as_alpha(tmp_path):
    pixels = random_pixels(bands=4)
    pixels[10:30, 20:50, 3] = 0
    path = write_scene(tmp_path / "scene.tif", pixels, photometric="RGB", alpha="yes")
    seen = []
    predict = lambda tiles: seen.append(tiles.shape[-1]) or scores_of(tiles)
    map_scene(path, tmp_path / "map.tif", predict, bands=(*RGB, "nir"))
    assert set(seen) == {4}
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), pixels[..., :3].argmax(-1))


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("int16", -32768), ("float32", np.nan)])
def test_other_types_reach_the_model_as_float32(tmp_path, dtype, nodata):
    pixels = random_pixels().astype(dtype)
    pixels[20:40, :33] = nodata
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=nodata)

    def predict(tiles):
        assert tiles.dtype == np.float32
        assert tiles.min() >= 0, "nodata was not given as 0"
        return scores_of(tiles)

    map_scene(path, tmp_path / "map.tif", predict)
    expected = random_pixels().argmax(-1)
    expected[20:40, :33] = 255
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)


def test_nodata_in_one_band_reads_as_zero(tmp_path):
    pixels = np.full((20, 20, 3), 500, np.int16)
    pixels[4, 5, 1] = -32768
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=-32768)
    seen = []

    def predict(tiles):
        seen.append(tiles.copy())
        return scores_of(tiles)

    map_scene(path, tmp_path / "map.tif", predict, settings=EvaluateConfig(20, 0, 1))
    wanted = np.where(pixels == -32768, 0, pixels)
    np.testing.assert_array_equal(seen[0][0], wanted)


@pytest.mark.parametrize("nodata", [np.nan, -1.0])
def test_missing_values_are_read_as_in_training(tmp_path, nodata):
    """In all bands: no data. In one band alone: zero."""
    pixels = random_pixels().astype(np.float32)
    pixels[3, 4], pixels[5, 6, 1], pixels[7, 8, :2] = nodata, nodata, nodata
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=nodata)
    map_scene(path, tmp_path / "map.tif")
    trained_on, missing = read_pixels(path)
    expected = np.where(missing, 255, trained_on.argmax(-1))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
    assert np.argwhere(expected == 255).tolist() == [[3, 4]]
    assert trained_on[5, 6].tolist() == [pixels[5, 6, 0], 0, pixels[5, 6, 2]]


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("bands", [slice(1, 2), slice(0, 3)])
def test_infinity_is_not_nodata(tmp_path, folder, value, bands):
    pixels = random_pixels().astype(np.float32)
    pixels[50, 7, bands] = value
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=np.nan)
    check_refused(folder, ["scene.tif", "not finite", "row 50", "column 7"], path)
    with pytest.raises(UserError, match="not finite"):
        read_pixels(path)


def test_ground_control_points_are_kept(tmp_path):
    corners = [(0, 0), (0, 90), (70, 0), (70, 90)]
    points = [GroundControlPoint(r, c, 500_000 + 10 * c, 4_000_000 - 9 * r) for r, c in corners]
    path = write_scene(tmp_path / "scene.tif", random_pixels(), crs="EPSG:32633", transform=None, gcps=points)
    map_scene(path, tmp_path / "map.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "map.tif") as made:
            kept, crs = made.gcps
    assert crs.to_epsg() == 32633
    assert [(p.row, p.col, p.x, p.y) for p in kept] == [(p.row, p.col, p.x, p.y) for p in points]


def test_memory_does_not_grow_with_the_height(tmp_path):
    peaks = []
    for height in (600, 2400):
        path = write_scene(tmp_path / f"{height}.tif", random_pixels(height, 200), compress="deflate")
        tracemalloc.start()
        map_scene(path, tmp_path / "map.tif", settings=EvaluateConfig(64, 16, 4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_failure_keeps_the_old_map_and_leaves_no_other_file(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels(300, 90))
    (folder / "map.tif").write_bytes(b"before")
    calls = []

    def predict(tiles):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores_of(tiles)

    with pytest.raises(KeyboardInterrupt):
        map_scene(path, folder / "map.tif", predict, products=CONFIDENCE, preview=folder / "map.png")
    assert [p.name for p in folder.iterdir()] == ["map.tif"]
    assert (folder / "map.tif").read_bytes() == b"before"


def test_model_whose_scores_are_not_finite(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels())
    check_refused(folder, ["scores", "not finite"], path, predict=lambda tiles: scores_of(tiles) * np.nan)


def check_refused(folder, expected, input, output=None, **options):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError) as caught:
        map_scene(input, output or folder / "map.tif", **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_missing_input(tmp_path, folder):
    check_refused(folder, ["gone.tif", "no such file"], tmp_path / "gone.tif")


def test_unreadable_input(tmp_path, folder):
    (tmp_path / "notes.tif").write_text("not an image")
    check_refused(folder, ["notes.tif", "cannot be read", "GeoTIFF"], tmp_path / "notes.tif")


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("window", [32, 320])  # GDAL takes another way where all is read at once
def test_truncated_input(tmp_path, folder, driver, kept, window):
    path = write_scene(tmp_path / f"scene.{driver}", random_pixels(200, 300), driver=driver)
    os.truncate(path, int(path.stat().st_size * kept))
    options = {"products": CONFIDENCE, "preview": folder / "map.png", "settings": EvaluateConfig(window, 8)}
    check_refused(folder, [path.name, "complete"], path, **options)


def test_wrong_band_count_names_the_bands(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels(bands=2))
    check_refused(folder, ["scene.tif", "2 bands", "3", "red, green, blue"], path)


def test_values_that_are_not_finite(tmp_path, folder):
    pixels = random_pixels().astype(np.float32)
    pixels[50, 7, 1] = np.inf
    path = write_scene(tmp_path / "scene.tif", pixels)
    check_refused(folder, ["scene.tif", "band 2 (green)", "row 50", "column 7", "nodata"], path)


def test_invalid_outputs(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels())
    before = path.read_bytes()
    check_refused(folder, ["does not exist", "nowhere"], path, folder / "nowhere" / "map.tif")
    check_refused(folder, ["scene.tif", "replace the input"], path, path)
    check_refused(folder, ["map.jpg", ".tif"], path, folder / "map.jpg")
    check_refused(folder, ["map.pdf", ".png"], path, preview=folder / "map.pdf")
    (folder / "taken.tif").mkdir()
    check_refused(folder, ["taken.tif", "folder"], path, folder / "taken.tif")
    linked = folder / "link.tif"
    linked.symlink_to(path)
    check_refused(folder, ["link.tif", "replace the input"], path, linked)
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files from anyone")
def test_folder_that_accepts_no_new_files(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels())
    check_refused(folder, ["/proc/map.tif: cannot be written"], path, Path("/proc/map.tif"))


def test_overviews_and_statistics(tmp_path):
    """Classes by the most frequent, confidence by the mean; against blocks of two by two in NumPy."""
    blocks = np.random.default_rng(0).integers(0, 3, (600, 700), dtype=np.uint8)
    classes = blocks.repeat(2, 0).repeat(2, 1)
    pixels = np.full((*classes.shape, 3), 50, np.uint8)
    np.put_along_axis(pixels, classes[..., None].astype(np.int64), 200, axis=-1)
    path = write_scene(tmp_path / "scene.tif", pixels)
    large = EvaluateConfig(window=256, overlap=0, batch_size=4)
    map_scene(path, tmp_path / "map.tif", products=CONFIDENCE, settings=large)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        np.testing.assert_array_equal(overview.read(1), blocks)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert float(dataset.tags(1)["STATISTICS_MEAN"]) == pytest.approx(classes.mean(), rel=1e-6)
    with rasterio.open(tmp_path / "map_confidence.tif", overview_level=0) as overview:
        np.testing.assert_allclose(overview.read(1), 201 / (201 + 51 + 51), rtol=1e-6)


def test_side_files_of_an_earlier_map_are_removed(tmp_path):
    path, output = write_scene(tmp_path / "scene.tif", random_pixels()), tmp_path / "map.tif"
    for suffix in (".aux.xml", ".ovr", ".msk"):
        Path(f"{output}{suffix}").write_text("stale")
    map_scene(path, output)
    assert {file.name for file in tmp_path.iterdir()} == {"scene.tif", "map.tif"}


@pytest.mark.parametrize("limit", [20_000, 111_000])  # while rows are written, and while overviews are
def test_full_disk(tmp_path, folder, limit):
    """A limit on the size of files stands in for the full disk."""
    resource = pytest.importorskip("resource")
    path = write_scene(tmp_path / "scene.tif", random_pixels(700, 600))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        check_refused(folder, ["map.tif", "cannot be written", "room"], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif", random_pixels())
    folder.chmod(0o500)
    try:
        check_refused(folder, ["map.tif", "cannot be written", "writable"], path)
    finally:
        folder.chmod(0o700)
