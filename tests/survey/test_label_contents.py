"""Values and colours of labels with their shares, and the classes that follow."""

import numpy as np
import pytest

from data_pipelines.survey.ambiguity import Ambiguous
from data_pipelines.survey.label_contents import LabelContents, choose_classes, parse_values, read_contents
from data_pipelines.survey.layout import find_layout
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_polygons, write_raster

RNG = np.random.default_rng(0)


def folder_with(tmp_path, masks, ending=".tif", **profile):
    for name, mask in masks.items():
        pixels = RNG.integers(1, 4000, (*mask.shape[:2], 3)).astype(np.uint16)
        write_raster(tmp_path / f"images/{name}.tif", pixels, **PLACE)
        driver = "PNG" if ending == ".png" else "GTiff"
        write_raster(tmp_path / f"masks/{name}{ending}", mask, driver=driver, **profile)
    return find_layout(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_values(tmp_path, dtype):
    masks = {name: RNG.choice([1, 2, 7], (24, 30), p=(0.6, 0.3, 0.1)).astype(dtype) for name in "ab"}
    found = read_contents(folder_with(tmp_path, masks))
    values, counts = np.unique(np.stack(list(masks.values())), return_counts=True)
    assert dict(found.counts) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert [type(value) for value in found.counts] == [int] * 3
    assert found.pixels == 2 * 24 * 30
    assert choose_classes(found).values == (1, 2, 7)
    assert choose_classes(found).names == ("class 1", "class 2", "class 7")


def test_declared_nodata_is_no_label(tmp_path):
    masks = {name: RNG.integers(0, 3, (24, 30)).astype(np.uint8) for name in "ab"}
    found = read_contents(folder_with(tmp_path, masks, nodata=0))
    assert found.nodata == (0,)
    assert choose_classes(found).ignored == (0,)
    assert choose_classes(found, []).values == (0, 1, 2)


def test_colours_of_painted_and_indexed_masks(tmp_path):
    """A colour counts the same in a mask of three bands and in one with a colour table."""
    colours = np.array([(60, 16, 152), (132, 41, 246), (226, 169, 41)], np.uint8)
    ids = {name: RNG.integers(0, 3, (40, 50)) for name in "ab"}
    layout = folder_with(tmp_path, {name: colours[label] for name, label in ids.items()}, ".png")
    import rasterio

    with rasterio.open(
        tmp_path / "masks/b.png", "w", driver="PNG", height=40, width=50, count=1, dtype="uint8"
    ) as file:
        file.write(ids["b"].astype(np.uint8), 1)
        file.write_colormap(1, {number: (*map(int, colour), 255) for number, colour in enumerate(colours)})
    found = read_contents(layout)
    counts = np.bincount(np.stack(list(ids.values())).ravel())
    assert found.colours
    assert dict(found.counts) == {tuple(c.tolist()): n for c, n in zip(colours, counts.tolist(), strict=True)}
    assert choose_classes(found).palette == tuple(tuple(c.tolist()) for c in colours)


def test_rare_colours_are_no_classes():
    counts = {(0, 0, 0): 3, (60, 16, 152): 9000, (110, 193, 228): 10000}
    classes = choose_classes(LabelContents(counts, 0, colours=True))
    assert (classes.values, classes.stray) == (((60, 16, 152), (110, 193, 228)), ((0, 0, 0),))


@pytest.mark.parametrize("suspect", [0, 255])
def test_a_value_that_may_mean_no_label(suspect):
    found = LabelContents({suspect: 10, 3: 30}, 0, colours=False)
    with pytest.raises(
        Ambiguous, match=rf"3 75.0%, {suspect} 25.0%; {suspect} may mean 'no label'.*--ignore$"
    ):
        choose_classes(found)
    assert choose_classes(found, parse_values(str(suspect), found)).ignored == (suspect,)
    assert set(choose_classes(found, parse_values("none", found)).values) == {suspect, 3}
    with pytest.raises(UserError, match="--ignore 4: not in the labels"):
        choose_classes(found, parse_values("4", found))
    with pytest.raises(UserError, match="leaves no class"):
        choose_classes(found, parse_values(f"3,{suspect}", found))


def test_a_grey_colour_may_mean_no_label():
    found = LabelContents({(155, 155, 155): 10, (60, 16, 152): 30}, 0, colours=True)
    with pytest.raises(Ambiguous, match="#9b9b9b may mean"):
        choose_classes(found)
    assert choose_classes(found, parse_values("#9B9B9B", found)).ignored == ((155, 155, 155),)


def test_names_of_classes():
    found = LabelContents({1: 10, 2: 30}, 0, colours=False)
    assert choose_classes(found, names=("land", "water")).names == ("land", "water")
    with pytest.raises(UserError, match=r"--classes land: 1 names for 2 classes \(1, 2\)"):
        choose_classes(found, names=("land",))
    with pytest.raises(UserError, match="all different"):
        choose_classes(found, names=("land", "land"))
    assert (
        len(set(choose_classes(LabelContents(dict.fromkeys(range(1, 31), 9), 0, colours=False)).palette))
        == 30
    )


def test_too_many_values(tmp_path):
    masks = {name: RNG.integers(1, 200, (40, 40)).astype(np.uint8) for name in "ab"}
    with pytest.raises(UserError, match=r"199 values, too many for classes.*--labels"):
        read_contents(folder_with(tmp_path, masks))


def squares(values):
    """Squares of 10 x 10 pixels side by side, from the corner of the images on."""
    for number, value in enumerate(values):
        west, east = 500_000 + 100 * number, 500_100 + 100 * number
        yield value, [(west, 5_000_000), (east, 5_000_000), (east, 4_999_900), (west, 4_999_900)]


def test_polygons(tmp_path):
    for name in "ab":
        pixels = RNG.integers(1, 4000, (20, 40, 3)).astype(np.uint16)
        write_raster(tmp_path / f"{name}.tif", pixels, **PLACE)
    write_polygons(tmp_path / "cover.geojson", list(squares(["wood", "wood", "lake"])), "cover", 32633)
    found = read_contents(find_layout(tmp_path))
    assert (found.attribute, dict(found.counts)) == ("cover", {"lake": 2 * 100, "wood": 2 * 200})
    assert found.unlabelled == 2 * (20 * 40 - 300)
    assert choose_classes(found).names == ("lake", "wood")
    with pytest.raises(UserError, match="no attribute 'kind', it has cover: correct --attribute"):
        read_contents(find_layout(tmp_path), "kind")


def test_options_of_polygons_for_rasters(tmp_path):
    layout = folder_with(tmp_path, {name: np.ones((8, 8), np.uint8) for name in "ab"})
    with pytest.raises(UserError, match="--attribute and --layer are for polygons"):
        read_contents(layout, "cover")


def test_fractions_are_no_classes(tmp_path):
    for name in "ab":
        pixels = RNG.integers(1, 4000, (24, 30, 3)).astype(np.uint16)
        write_raster(tmp_path / f"images/{name}.tif", pixels, **PLACE)
        write_raster(tmp_path / f"masks/{name}.tif", RNG.choice([0.5, 1.5], (24, 30)).astype(np.float32))
    layout = find_layout(tmp_path, "images/{domain}.tif", "masks/{stem}.tif")
    with pytest.raises(UserError, match=r"masks/a.tif: holds 0.5: store labels as whole numbers$"):
        read_contents(layout)
