"""The image folder source: pixels, labels, rejected settings, messages."""

import logging
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from data_pipelines.readers.file_records import ArrayCache
from data_pipelines.readers.image_files import ImageFolder
from data_pipelines.records import Record, Window, examples, split_holdout
from spectralmoe_jax.errors import UserError

# Of the files that tests write; that reading does not warn is tested.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PALETTE = ((60, 16, 152), (132, 41, 246), (110, 193, 228))
GREY = (155, 155, 155)
BANDS = ("red", "green", "blue")


def paint(ids: np.ndarray) -> np.ndarray:
    return np.array((*PALETTE, GREY), np.uint8)[ids]


def write_tif(path: Path, pixels: np.ndarray, descriptions=(), **profile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        for band, name in enumerate(descriptions, 1):
            dataset.set_band_description(band, name)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two domains of two 20 x 30 images each; every mask holds all classes and some ignored pixels."""
    rng = np.random.default_rng(0)
    for domain in ("north", "south"):
        for stem in ("a", "b"):
            write_png(
                tmp_path / domain / "images" / f"{stem}.png", rng.integers(0, 256, (20, 30, 3), np.uint8)
            )
            write_png(tmp_path / domain / "masks" / f"{stem}.png", paint(rng.integers(0, 4, (20, 30))))
    return tmp_path


def open_folder(root, **changes) -> ImageFolder:
    settings = {"image_glob": "*/images/*", "palette": PALETTE, "bands": BANDS, "ignore_colours": (GREY,)}
    return ImageFolder(root, **{**settings, **changes})


def test_pixels_equal_pillow(folder):
    source = open_folder(folder, domains=("south", "north"))
    assert [r.name for r in source.records] == [
        "south/images/a", "south/images/b", "north/images/a", "north/images/b",
    ]  # fmt: skip
    for record, image, label in examples(source):
        painted = np.array(Image.open(record.mask))
        np.testing.assert_array_equal(image, np.array(Image.open(record.image)))
        np.testing.assert_array_equal(paint(np.where(label == 255, 3, label)), painted)
        assert (record.height, record.width) == image.shape[:2] == label.shape
        assert image.dtype == label.dtype == np.uint8


def test_reading_prints_nothing(folder, recwarn):
    warnings.simplefilter("always")
    list(examples(open_folder(folder)))
    assert not recwarn.list


def test_mask_encodings_agree(folder):
    expected = open_folder(folder, domains=("north",))
    record = expected.records[0]
    label = expected.read_label(record).copy()
    rgb = paint(np.where(label == 255, 3, label))

    transparent = np.dstack([rgb, np.full(label.shape, 255, np.uint8)])
    transparent[label == 255] = (1, 2, 3, 0)
    indexed = Image.fromarray(np.where(label == 255, 3, label).astype(np.uint8))
    indexed.putpalette([value for colour in (*PALETTE, GREY) for value in colour], "RGB")
    for mask in (Image.fromarray(transparent), indexed, Image.fromarray(label)):
        mask.save(record.mask)
        source = open_folder(folder, domains=("north",))
        np.testing.assert_array_equal(source.read_label(record), label)


def test_real_masks_match_a_comparison_colour_by_colour(shared_data):
    palette = ((60, 16, 152), (132, 41, 246), (110, 193, 228), (254, 221, 58), (226, 169, 41))
    source = ImageFolder(shared_data / "dubai", palette=palette, bands=BANDS, ignore_colours=(GREY,))
    assert len(source.records) == 54
    for index in range(0, 54, 9):
        record = source.records[index]
        rgb = np.array(Image.open(record.mask).convert("RGB"))
        expected = [int((rgb == colour).all(axis=-1).sum()) for colour in palette]
        label = source.read_label(record)
        assert [int((label == k).sum()) for k in range(5)] == expected == source.class_pixels[index].tolist()
        assert int((label == 255).sum()) == label.size - sum(expected)
        assert source.read_image(record).shape == (*label.shape, 3)


def test_bands_are_found_by_name(folder):
    before = {record.name: image for record, image, _ in examples(open_folder(folder))}
    swap_bands(folder)
    for record, image, _ in examples(open_folder(folder)):
        np.testing.assert_array_equal(image, before[record.name])


def test_describe_counts_by_domain(folder):
    write_png(folder / "south/masks/a.png", np.full((20, 30, 3), GREY, np.uint8))
    write_png(folder / "south/masks/b.png", paint(np.repeat([0, 1], 300).reshape(20, 30)))
    assert open_folder(folder).describe().splitlines()[1] == "south: 2 images, 0.0 Mpx, 50.0% labelled"


def test_unknown_colours_are_counted_once_in_the_log(folder, caplog):
    for stem, colour, count in (("a", (9, 8, 7), 5), ("b", (1, 1, 1), 3)):
        path = folder / "north" / "masks" / f"{stem}.png"
        mask = np.array(Image.open(path))
        mask.reshape(-1, 3)[:count] = colour
        write_png(path, mask)
    with caplog.at_level(logging.WARNING):
        source = pickle.loads(pickle.dumps(open_folder(folder)))
        labels = {record.name: label for record, _, label in examples(source)}
    (entry,) = caplog.records
    assert "8 pixels in 2 of 4 masks" in entry.message
    assert entry.message.index("(9, 8, 7) x 5") < entry.message.index("(1, 1, 1) x 3")
    assert (labels["north/images/a"].ravel()[:5] == 255).all()


def test_ids_beyond_the_classes_are_unknown(folder, caplog):
    ids = np.tile(np.array([0, 2, 3, 255, 254], np.uint8), (20, 6))
    write_png(folder / "north" / "masks" / "a.png", ids)
    source = open_folder(folder, domains=("north",))
    assert "240 pixels in 1 of 2 masks" in caplog.text
    np.testing.assert_array_equal(source.read_label(source.records[0])[0, :5], [0, 2, 255, 255, 255])


def test_float_images_with_nodata(tmp_path):
    pixels = np.random.default_rng(1).random((8, 9, 4), np.float32)
    pixels[2, 3] = -9999
    pixels[4, 4, 1] = -9999  # one band alone: the pixel is known, this value of it is not
    write_tif(tmp_path / "x/images/i.tif", pixels, nodata=-9999, descriptions=("R", "G", "B", "NIR"))
    write_png(tmp_path / "x/masks/i.png", paint(np.zeros((8, 9), int)))
    source = open_folder(tmp_path, bands=("r", "g", "b", "nir"))
    image, label = source.read_image(source.records[0]), source.read_label(source.records[0])
    assert image.dtype == np.float32
    assert (image[2, 3] == 0).all()
    assert image[4, 4, 1] == 0
    np.testing.assert_array_equal(image[4, 4, [0, 2, 3]], pixels[4, 4, [0, 2, 3]])
    assert np.argwhere(label == 255).tolist() == [[2, 3]]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_windows_are_parts_of_the_whole(folder, cache_bytes):
    source = open_folder(folder, cache_bytes=cache_bytes)
    record, window = source.records[1], Window(3, 5, 11, 7)
    image, label = np.array(Image.open(record.image)), source.read_label(record)
    np.testing.assert_array_equal(source.read_image(record, window), image[3:14, 5:12])
    np.testing.assert_array_equal(source.read_label(record, window), label[3:14, 5:12])
    with pytest.raises(ValueError, match="read-only"):
        source.read_image(record)[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        source.read_label(record, window)[:] = 0


def test_cache_keeps_the_latest_within_its_limit():
    cache = ArrayCache(400)
    reads = []

    def get(key):
        return cache.get(key, lambda: reads.append(key) or np.full(100, key, np.uint8))

    for key in (1, 2, 3, 4, 1, 5, 1, 2):  # 5 pushes 2 out, the one unused for longest
        assert (get(key) == key).all()
    assert reads == [1, 2, 3, 4, 5, 2]
    cache.get("large", lambda: np.zeros(101, np.uint8))
    assert get(1)[0] == 1
    assert reads[-1] == 2
    assert pickle.loads(pickle.dumps(cache)).get(1, lambda: np.zeros(1))[0] == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def remove_masks(root):
    (root / "north/masks/b.png").unlink()


def shrink_mask(root):
    write_png(root / "north/masks/b.png", paint(np.zeros((20, 29), int)))


def empty_image(root):
    (root / "north/images/b.png").write_bytes(b"")


def add_a_band(root):
    write_tif(root / "north/images/b.png", np.zeros((20, 30, 5), np.uint8), ())


def swap_bands(root):
    path = root / "north/images/b.png"
    write_tif(path, np.array(Image.open(path))[..., ::-1], ("blue", "green", "red"))


def change_type(root):
    write_tif(root / "north/images/b.png", np.zeros((20, 30, 3), np.uint16))


def two_band_mask(root):
    write_tif(root / "north/masks/b.png", np.zeros((20, 30, 2), np.uint8))


def foreign_colours(root):
    for path in root.glob("*/masks/*"):
        write_png(path, np.full((20, 30, 3), 77, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "settings", "parts"),
    [
        (None, {"image_glob": "*/pictures/*"}, ["data.image_glob='*/pictures/*'"]),
        (None, {"image_glob": "/nowhere/*"}, ["data.image_glob='/nowhere/*'"]),
        (None, {"domains": ("north", "west")}, ["'west'", "north, south", "domain"]),
        (None, {"domains": ()}, ["empty", "north, south"]),
        (
            None,
            {"mask_template": "{place}/{stem}.png"},
            ["data.mask_template='{place}/{stem}.png'", "{domain}"],
        ),
        (None, {"palette": (*PALETTE, PALETTE[1])}, ["classes.palette", "(132, 41, 246)"]),
        (None, {"palette": ((1, 2, 300),)}, ["classes.palette", "(1, 2, 300)"]),
        (None, {"bands": ("red", "green")}, ["a.png", "3 bands", "names 2 (red, green)"]),
        (remove_masks, {}, ["north/images/b.png", "north/masks/b.png", "data.mask_template"]),
        (shrink_mask, {}, ["north/masks/b.png", "20 x 29", "20 x 30", "images/b.png"]),
        (empty_image, {}, ["north/images/b.png", "readable"]),
        (add_a_band, {}, ["north/images/b.png", "5 bands", "red, green, blue"]),
        (change_type, {}, ["north/images/b.png", "not 8-bit", ".png is"]),
        (two_band_mask, {}, ["north/masks/b.png", "2 bands"]),
        (foreign_colours, {}, ["(77, 77, 77) x 2400", "classes.palette"]),
        (lambda root: truncate(root / "north/masks/b.png"), {}, ["north/masks/b.png", "truncated"]),
    ],
)
def test_bad_settings_are_rejected_in_one_line(folder, spoil, settings, parts):
    if spoil:
        spoil(folder)
    with pytest.raises(UserError) as error:
        open_folder(folder, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder, set data\.root"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_truncated_images_name_the_file_when_read(folder, ending):
    path = folder / "north/images" / f"a.{ending}"
    pixels = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    (folder / "north/images/a.png").unlink()
    write_png(path, pixels)
    truncate(path)
    source = open_folder(folder)
    with pytest.raises(UserError, match=f"images/a.{ending}: truncated") as error:
        source.read_image(source.records[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_pixels_name_the_file_when_read(tmp_path, value):
    pixels = np.zeros((8, 9, 3), np.float32)
    pixels[1, 1, 1] = value
    write_tif(tmp_path / "x/images/i.tif", pixels)
    write_png(tmp_path / "x/masks/i.png", paint(np.zeros((8, 9), int)))
    source = open_folder(tmp_path)
    with pytest.raises(UserError, match=r"i\.tif: 1 values are not finite"):
        source.read_image(source.records[0])


def make_records(**sizes: int) -> list[Record]:
    return [Record(domain, f"{domain}/{i}", 5, 5) for domain, n in sizes.items() for i in range(n)]


def test_holdout_is_a_stratified_partition():
    records = make_records(a=9, b=25, c=1, d=2)
    train, held = split_holdout(records, 0.1, seed=4)
    assert sorted((*train, *held), key=records.index) == records
    assert {d: sum(r.domain == d for r in held) for d in "abcd"} == {"a": 1, "b": 2, "c": 0, "d": 1}
    assert split_holdout(records[::-1], 0.1, seed=4)[1] == held[::-1]
    assert split_holdout(make_records(a=9), 0.1, seed=4)[1] == held[:1]
    assert len({split_holdout(records, 0.1, seed)[1] for seed in range(20)}) > 10
    assert split_holdout(records, 0, seed=4) == (tuple(records), ())


@pytest.mark.parametrize(
    ("records", "fraction", "message"),
    [
        ([], 0.1, "empty"),
        (make_records(a=1, b=1), 0.1, "no image for model selection"),
        (make_records(a=3), 1.0, r"data\.holdout = 1\.0"),
    ],
)
def test_bad_holdouts(records, fraction, message):
    with pytest.raises(UserError, match=message):
        split_holdout(records, fraction, 0)
