"""Labels counted on coarse cells and found again by crops, without reading images at the start."""

import pickle
from itertools import islice, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.loader import train_batches
from data_pipelines.readers import label_counts
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.records import ArraySource, Record, Window
from data_pipelines.tiles.label_grid import LabelGrid, edges, grid_cells
from data_pipelines.tiles.tile_index import ClassBalancedIndex, TileIndex
from data_pipelines.transforms import Augment, resized_crop
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

SIDES = st.integers(1, 3000)


@given(SIDES, st.integers(1, 700))
def test_edges_cover_a_side_evenly(side, cell):
    found = edges(side, cell)
    assert (found[0], found[-1]) == (0, side)
    assert len(found) - 1 == -(-side // cell)
    assert set(np.diff(found)) <= {side // (len(found) - 1), -(-side // (len(found) - 1))}


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_parts_that_touch_labels(height, width, cell, stride, seed):
    """As painting each cell with labels, and looking whether a part has a painted pixel."""
    rng = np.random.default_rng(seed)
    tops, lefts = edges(height, cell), edges(width, cell)
    held = rng.random((len(tops) - 1, len(lefts) - 1)) < 0.3
    painted = np.repeat(np.repeat(held, np.diff(tops), axis=0), np.diff(lefts), axis=1)
    record = Record("d", "x", height, width)
    grid = LabelGrid([record], held.reshape(-1, 1).astype(np.uint32), cell)
    parts = grid.labelled_parts(record, edges(height, stride), edges(width, stride))
    for row, (top, bottom) in enumerate(zip(*pairs(edges(height, stride)), strict=True)):
        for col, (left, right) in enumerate(zip(*pairs(edges(width, stride)), strict=True)):
            assert parts[row, col] == painted[top:bottom, left:right].any()
            window = Window(top, left, bottom - top, right - left)
            drawn = [place for _, place in grid.draw_cells(rng, record, window, 0)]
            touching = {(w.row, w.col) for w in drawn}
            assert bool(touching) == parts[row, col]
            assert all(painted[w.row : w.row + w.height, w.col : w.col + w.width].all() for w in drawn)


def test_cells_are_drawn_by_their_pixels():
    """The first by its share, the second by its share of the rest."""
    record = Record("d", "x", 10, 30)
    grid = LabelGrid([record], np.array([[60], [30], [10]], np.uint32), cell=10)
    rng = np.random.default_rng(0)
    drawn = [[n for n, _ in grid.draw_cells(rng, record, Window(0, 0, 10, 30), None)] for _ in range(4000)]
    shares = {order: drawn.count(list(order)) / 4000 for order in permutations(range(3))}
    for (first, second, last), share in shares.items():
        weights = np.array([0.6, 0.3, 0.1])[[first, second, last]]
        assert share == pytest.approx(weights[0] * weights[1] / weights[1:].sum(), abs=4 * 0.5 / 4000**0.5)


def pairs(values):
    return values[:-1].tolist(), values[1:].tolist()


def open_tiles(root, **changes):
    labels = RasterLabels(ValueCode((1, 2), ignore=(0,)))
    return GeoTiffTiles(root, **{"bands": ("z",), "labels": labels, "classes": 2, **changes})


def write_scene(root, image, mask, name="x", **profile):
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", **PLACE}
    write_raster(root / f"a/images/{name}.tif", image, **options, **profile)
    write_raster(root / f"a/masks/{name}.tif", mask, **options)


@pytest.mark.parametrize("tile", [None, 190])
def test_counts_of_cells_are_those_of_the_pixels(tmp_path, monkeypatch, tile):
    """Files are read by bands of rows that cut cells and records apart."""
    monkeypatch.setattr(label_counts, "_PIXELS", 700 * 100)
    monkeypatch.setattr(label_counts, "_ROWS", 30)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2, (613, 700), np.uint8) * 9
    mask = rng.integers(0, 3, (613, 700), np.uint8)
    mask[300:, :350] = 0
    write_scene(tmp_path, image, mask, nodata=0)
    source = open_tiles(tmp_path, tile=tile)
    number = 0
    for record in source.records:
        for cell in grid_cells(record):
            row, col, height, width = record.in_file(cell)
            here = mask[row : row + height, col : col + width]
            valid = here * (image[row : row + height, col : col + width] > 0)
            for label in range(2):
                assert source.label_grid.counts[number, label] == (here == label + 1).sum()
                assert source.exact_label_grid.counts[number, label] == (valid == label + 1).sum()
            assert source.label_grid.locate(number) == (record, cell)
            number += 1
    assert number == len(source.label_grid.counts)
    assert source.class_pixels.sum() == ((mask > 0) & (image > 0)).sum()


def test_images_are_read_only_around_labels_when_counting(tmp_path, monkeypatch):
    """Two fields of a large image: no pixel is read that is not in the bounds of their cells."""
    image, mask = np.zeros((2048, 1024), np.uint8), np.zeros((2048, 1024), np.uint8)
    mask[300:320, 300:320], mask[1500:1510, 800:810] = 1, 2
    image[300:310, 300:320] = 1
    write_scene(tmp_path, image, mask, nodata=0)
    windows = []
    monkeypatch.setattr(label_counts, "_PIXELS", 1024 * 256)
    missing_pixels = label_counts.missing_pixels
    monkeypatch.setattr(
        label_counts, "missing_pixels", lambda *given: windows.append(given[1]) or missing_pixels(*given)
    )
    assert open_tiles(tmp_path).class_pixels.tolist() == [[200, 0]]
    assert windows == [Window(256, 256, 256, 256), Window(1280, 768, 256, 256)]


@pytest.fixture(scope="module")
def bordered(tmp_path_factory):
    """2048 x 2048 with labels everywhere and data in a tenth of it, at the lower right."""
    root = tmp_path_factory.mktemp("bordered")
    image = np.zeros((2048, 2048), np.uint8)
    image[1400:, 1400:] = 7
    mask = np.ones((2048, 2048), np.uint8)
    mask[:, ::2] = 2
    write_scene(root, image, mask, nodata=0)
    return root


def crops(index, count, seed=0, **options):
    rng = np.random.default_rng(seed)
    for number in range(count):
        tile = index[number % len(index)].draw(rng)
        yield tile, resized_crop(tile, rng, **{"crop": 256, "scale": (1, 1), **options})


def test_opening_and_drawing_by_area_do_not_read_images(bordered, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("the image is read")

    monkeypatch.setattr("data_pipelines.readers.image_files.missing_pixels", refuse)
    monkeypatch.setattr(label_counts, "missing_pixels", refuse)
    index = TileIndex(open_tiles(bordered), 256)
    assert len(index) == 64
    with pytest.raises(AssertionError, match="the image is read"):
        ClassBalancedIndex(index.source, 256, temperature=0.1)


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 2.0)])
def test_every_crop_of_a_scene_with_a_border_has_labels(bordered, scale):
    index = TileIndex(open_tiles(bordered), 256)
    for tile, example in crops(index, 200, scale=scale, max_class_share=1.0):
        assert (example["label"] < 255).any()
        assert index.grid.has_data(index.source, tile.record, tile.cell)


def test_draws_are_independent_of_earlier_draws(bordered):
    """A process finds out bit by bit where data is; another worker or host knows other parts of it."""
    fresh = TileIndex(open_tiles(bordered), 256)
    used = pickle.loads(pickle.dumps(TileIndex(open_tiles(bordered), 256)))
    for _ in crops(used, 100, seed=5):
        pass
    for (one, first), (other, second) in zip(crops(fresh, 64), crops(used, 64), strict=True):
        assert (one.record, one.cell) == (other.record, other.cell)
        assert first["label"].tobytes() == second["label"].tobytes()
    batches = [
        list(islice(train_batches(fresh, Augment(64), batch_size=4, seed=1, workers=workers), 6))
        for workers in (0, 2)
    ]
    for batch, same in zip(*batches, strict=True):
        assert all(batch[key].tobytes() == same[key].tobytes() for key in batch)


def test_places_with_data_are_drawn_evenly(bordered):
    """Nine cells of 256 touch the data; each comes as often as another."""
    index = TileIndex(open_tiles(bordered), 256)
    cells = [tile.cell[:2] for tile, _ in crops(index, 1200, crop=16)]
    found, counts = np.unique(cells, axis=0, return_counts=True)
    assert len(found) == 9
    assert np.abs(counts / 1200 - 1 / 9).max() < 4 * np.sqrt(1 / 9 / 1200)


def test_labels_only_on_nodata(tmp_path):
    write_scene(tmp_path, np.zeros((300, 300), np.uint8), np.ones((300, 300), np.uint8), nodata=0)
    index = TileIndex(open_tiles(tmp_path), 64)
    with pytest.raises(UserError, match="none of the 1 training images has data where it is labelled"):
        next(crops(index, 1))
    with pytest.raises(UserError, match=r"leaves none of the 1 training images"):
        ClassBalancedIndex(index.source, 64, temperature=0.1)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """4096 x 4096 with two labelled fields, of 60 and 90 pixels a side, of classes 1 and 2."""
    root = tmp_path_factory.mktemp("fields")
    mask = np.zeros((4096, 4096), np.uint8)
    mask[1000:1060, 3000:3060] = 1
    mask[3500:3590, 500:590] = 2
    write_scene(root, np.ones((4096, 4096), np.uint8), mask)
    return open_tiles(root), mask


def test_cells_without_labels_are_left_out(fields):
    source, _ = fields
    index = TileIndex(source, 256)
    corners = {(768, 2816), (1024, 2816), (3328, 256), (3328, 512), (3584, 256), (3584, 512)}
    assert {tuple(index[number].cell) for number in range(len(index))} == {(*c, 256, 256) for c in corners}
    assert repr(index) == "TileIndex(6 cells of 1 images)"
    for _, example in crops(index, 256):
        assert (example["label"] < 255).any()


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 2.0)])
def test_every_draw_for_a_rare_class_holds_it(tmp_path, scale):
    """60 x 60 pixels of 4096 x 4096, all else of the other class."""
    mask = np.ones((4096, 4096), np.uint8)
    mask[2000:2060, 700:760] = 2
    write_scene(tmp_path, np.ones((4096, 4096), np.uint8), mask)
    index = ClassBalancedIndex(open_tiles(tmp_path), 256, temperature=0.01)
    held = [(example["label"] == 1).any() for tile, example in crops(index, 400, scale=scale) if tile.wanted]
    assert len(held) == 400
    assert all(held)


def test_windows_for_a_pixel_lie_anywhere_over_it():
    """A single pixel of a class is as often in any place of the crop."""
    label = np.zeros((600, 600), np.uint8)
    label[300, 300] = 1
    arrays = ArraySource({("d", "x"): (np.zeros((600, 600, 1), np.uint8), label)})
    arrays.class_pixels = np.array([[359_999, 1]])
    index = ClassBalancedIndex(arrays, 64, temperature=0.01)
    drawn = list(crops(index, 2000, crop=64, max_class_share=1.0))
    rows, cols = np.array([np.argwhere(example["label"] == 1)[0] for _, example in drawn]).T
    for places in (rows, cols):
        counts = np.histogram(places, bins=8, range=(0, 64))[0] / 2000
        assert np.abs(counts - 1 / 8).max() < 4 * np.sqrt(1 / 8 / 2000)


def test_label_counts_do_not_change_crops_of_fully_labelled_images():
    """Fully labelled images: the same crops as from a source that knows nothing of its labels."""
    rng = np.random.default_rng(0)
    images = {("d", str(i)): (rng.integers(0, 256, (90, 70, 3), np.uint8), rng.integers(0, 3, (90, 70)))
              for i in range(3)}  # fmt: skip
    blind, counted = ArraySource(images), ArraySource(images)
    counted.class_pixels = np.stack([np.bincount(label.ravel(), minlength=3) for _, label in images.values()])
    augment = Augment(32, AugmentConfig(max_class_share=0.36))
    drawn = [
        list(islice(train_batches(TileIndex(source, 32), augment, batch_size=4, seed=2), 20))
        for source in (blind, counted)
    ]
    for batch, same in zip(*drawn, strict=True):
        assert all(batch[key].tobytes() == same[key].tobytes() for key in batch)
