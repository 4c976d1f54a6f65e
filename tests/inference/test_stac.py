"""STAC as input of `spectralmoe predict`: the stacked assets against the pixels that they hold."""

import json

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.transform import from_origin

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.stac import without_stac
from tests.inference.test_geotiff import write_scene
from tests.inference.test_model import folder  # noqa: F401 (a fixture)

BANDS = ("blue", "green", "red", "nir")
DATE = "2024-05-01T00:00:00Z"


def write_item(root, name, fields, seed=0):
    """An item with a file for each of blue, green and red at 10 m, and near infrared at 20 m.

    `fields` gives the fields of an asset from the name of its band.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng, item_assets, pixels = np.random.default_rng(seed), {}, {}
    for number, band in enumerate(BANDS):
        side, step = (24, 20) if band == "nir" else (48, 10)
        pixels[band] = rng.integers(1, 3000, (side, side, 1), dtype=np.uint16)
        grid = from_origin(500_000, 4_000_000, step, step)
        write_scene(root / f"{name}_{band}.tif", pixels[band], transform=grid, nodata=0)
        item_assets[f"asset{number}"] = {"href": f"./{name}_{band}.tif", **fields(band)}
    item_assets["about"] = {"href": "./about.html", "type": "text/html"}
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": None, "assets": item_assets,
        "properties": {"datetime": DATE}, "links": [], "stac_extensions": [],
    }  # fmt: skip
    path = root / f"{name}.json"
    path.write_text(json.dumps(item))
    return path, pixels


def by_common_name(band):
    return {"eo:bands": [{"name": f"X{BANDS.index(band)}", "common_name": band}]}


def by_band(band):
    """As STAC 1.1 states bands."""
    return {"bands": [{"name": band}]}


@pytest.mark.parametrize("fields", [by_common_name, by_band])
@pytest.mark.parametrize("order", [BANDS, ("nir", "red")])
def test_bands_are_stacked_by_name(tmp_path, fields, order):
    path, pixels = write_item(tmp_path, "one", fields)
    with without_stac([str(path), "other.tif"], order, None) as scenes:
        made, other = scenes.inputs
        assert (other, scenes.failed) == ("other.tif", [])
        with rasterio.open(made) as dataset:
            assert dataset.descriptions == order
            assert dataset.shape == (48, 48)
            assert dataset.transform == from_origin(500_000, 4_000_000, 10, 10)
            assert dataset.nodata == 0
            read = dict(zip(order, dataset.read(), strict=True))
    np.testing.assert_array_equal(read["red"], pixels["red"][..., 0])
    # bilinear: pixel (2, 2) of 10 m lies a quarter of a 20 m pixel from the middle of (1, 1), towards (0, 0)
    coarse = pixels["nir"][..., 0].astype(float)
    weights = np.outer([0.25, 0.75], [0.25, 0.75])
    assert read["nir"][2, 2] == pytest.approx((coarse[:2, :2] * weights).sum(), abs=1)


def test_names_of_the_sensor(tmp_path):
    """Several bands of Sentinel-2 have one common name; their own names tell them apart."""
    names = {"blue": "B05", "green": "B06", "red": "B07", "nir": "B08"}
    both = lambda band: {
        "eo:bands": [{"name": names[band], "common_name": "rededge" if band != "nir" else "nir"}]
    }
    path, pixels = write_item(tmp_path, "one", both)
    with without_stac([str(path)], ("B06", "B08"), "sentinel2") as scenes:
        assert scenes.failed == []
        with rasterio.open(scenes.inputs[0]) as dataset:
            np.testing.assert_array_equal(dataset.read(1)[::2, ::2].shape, (24, 24))
            np.testing.assert_array_equal(dataset.read(1), pixels["green"][..., 0])


def test_a_collection_is_mapped(folder, tmp_path, capsys):  # noqa: F811
    """A catalog with two good items and one without a band: two maps, status 2, the reason in the table."""
    catalog = pystac.Catalog("all", "all items")
    for seed, name in enumerate(("one", "two", "three")):
        fields = (
            by_common_name
            if name != "three"
            else (lambda band: by_common_name(band) if band != "nir" else {})
        )
        path, _ = write_item(tmp_path / "assets", name, fields, seed)
        item = pystac.Item.from_file(str(path))
        item.make_asset_hrefs_absolute()
        catalog.add_item(item)
    catalog.normalize_and_save(str(tmp_path / "catalog"), pystac.CatalogType.SELF_CONTAINED)
    run = str(folder / "runs" / "quickstart")
    given = ["predict", "--checkpoint", run, "--input", str(tmp_path / "catalog" / "catalog.json")]
    assert main([*given, "--output", str(tmp_path / "maps")]) == 2
    said = capsys.readouterr().out
    assert "1 failed, 2 mapped" in said
    assert "has no band 'nir'" in said
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["one.tif", "two.tif"]
    with rasterio.open(tmp_path / "maps" / "one.tif") as dataset:
        assert dataset.crs == rasterio.crs.CRS.from_epsg(32633)
    assert main([*given, "--output", str(tmp_path / "maps")]) == 2
    assert "2 done before" in capsys.readouterr().out


def test_an_item_collection(tmp_path):
    items = [json.loads(write_item(tmp_path, name, by_band)[0].read_text()) for name in ("one", "two")]
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    with without_stac([str(path)], BANDS, None) as scenes:
        assert len(scenes.inputs) == 2
        for made in scenes.inputs:
            with rasterio.open(made) as dataset:
                assert dataset.read().any()


def test_assets_of_another_area(tmp_path):
    path, pixels = write_item(tmp_path, "one", by_band)
    write_scene(tmp_path / "one_red.tif", pixels["red"], transform=from_origin(600_000, 4_000_000, 10, 10))
    with without_stac([str(path)], BANDS, None) as scenes:
        assert "covers another area" in scenes.failed[0][1]
    (tmp_path / "one_red.tif").unlink()
    with without_stac([str(path)], BANDS, None) as scenes:
        assert "one_red.tif: cannot be opened" in scenes.failed[0][1]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"type": "Feature"}', '{"type": "Catalog", "id": "x"}'])
def test_what_is_no_stac(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json: ") as error, without_stac([str(path)], BANDS, None):
        pass
    assert "\n" not in str(error.value)


def with_assets(path, **more):
    """An item with further assets."""
    item = json.loads(path.read_text())
    item["assets"] |= more
    path.write_text(json.dumps(item))
    return path


def test_a_picture_and_copies_beside_the_bands(tmp_path):
    """As a public catalogue has them: true colours of three bands, JPEG 2000 copies, a thumbnail."""
    path, pixels = write_item(tmp_path, "one", by_common_name)
    bands = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
    copy = {"href": "./red.jp2", "type": "image/jp2", **by_common_name("red")}
    with_assets(
        path,
        visual={"href": "./TCI.tif", "eo:bands": bands, "roles": ["visual"]},
        thumbnail={"href": "./small.jpg", "eo:bands": bands, "roles": ["thumbnail"]},
        red_jp2=copy,
    )
    with without_stac([str(path)], BANDS, "sentinel2") as scenes:
        assert scenes.failed == []
        with rasterio.open(scenes.inputs[0]) as dataset:
            np.testing.assert_array_equal(dataset.read(3), pixels["red"][..., 0])


def test_addresses_of_local_files(tmp_path):
    path, pixels = write_item(tmp_path / "a folder", "one", by_band)
    item = json.loads(path.read_text())
    for asset in item["assets"].values():
        asset["href"] = (path.parent / asset["href"]).resolve().as_uri()
    path.write_text(json.dumps(item))
    with without_stac([str(path)], ("red",), None) as scenes, rasterio.open(scenes.inputs[0]) as dataset:
        np.testing.assert_array_equal(dataset.read(1), pixels["red"][..., 0])


def test_what_a_stack_would_lose_is_refused(tmp_path):
    """Masks and control points of assets."""
    path, _ = write_item(tmp_path, "one", by_band)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"),
        rasterio.open(tmp_path / "one_red.tif", "r+") as dataset,
    ):
        dataset.nodata = None
        dataset.write_mask(np.eye(48, dtype=np.uint8) * 255)
    with without_stac([str(path)], BANDS, None) as scenes:
        assert "one_red.tif: has a mask" in scenes.failed[0][1]


def test_a_malformed_item_stops_no_other(folder, tmp_path, capsys):  # noqa: F811
    items = tmp_path / "items"
    for name in ("good", "odd", "long"):
        write_item(items, name, by_common_name)
    odd = json.loads((items / "odd.json").read_text())
    odd["assets"]["asset0"]["eo:bands"] = ["blue"]
    (items / "odd.json").write_text(json.dumps(odd))
    long = json.loads((items / "long.json").read_text())
    (items / "long.json").write_text(json.dumps(long | {"id": "x" * 300}))
    run = str(folder / "runs" / "quickstart")
    maps = tmp_path / "maps"
    assert (
        main(["predict", "--checkpoint", run, "--input", str(items / "*.json"), "--output", str(maps)]) == 2
    )
    said = capsys.readouterr().out
    assert "1 failed, 2 mapped" in said
    assert "odd.json: odd" in said
    assert "good.json: good: mapped" in said
    assert "/spectralmoe-" not in said
    page = tmp_path / "view.html"
    assert (
        main(["view", "--checkpoint", run, "--input", str(items / "good.json"), "--output", str(page)]) == 0
    )
    assert page.stat().st_size > 5000
