"""Pairs of images and labels below a folder, and what is ambiguous about them."""

import numpy as np
import pytest

from data_pipelines.survey.ambiguity import Ambiguous
from data_pipelines.survey.layout import find_layout
from data_pipelines.survey.roles import find_files, looks_like_labels
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_polygons, write_raster


def image(path, size=32, bands=4, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 4000, (size, size, bands)).astype(np.uint16)
    return write_raster(path, pixels, **PLACE)


def mask(path, size=32, values=3):
    return write_raster(
        path, np.random.default_rng(1).integers(1, values + 1, (size, size)).astype(np.uint8), **PLACE
    )


# (images, labels) of a folder, and the patterns that a person would write
LAYOUTS = {
    "folders of domains": (
        ["north/images/1.tif", "north/images/2.tif", "south/images/1.tif"],
        ["north/masks/1.tif", "north/masks/2.tif", "south/masks/1.tif"],
        "{domain}/images/*.tif", "{domain}/masks/{stem}.tif", {"north": 2, "south": 1},
    ),
    "folders of roles": (
        ["images/north/a.tif", "images/south/b.tif"], ["labels/north/a.tif", "labels/south/b.tif"],
        "images/{domain}/*.tif", "labels/{domain}/{stem}.tif", {"north": 1, "south": 1},
    ),
    "beside each other, named by domain": (
        ["landsat5_image.tif", "landsat7_image.tif"], ["landsat5_label.tif", "landsat7_label.tif"],
        "{domain}_image.tif", "{domain}_label.tif", {"landsat5": 1, "landsat7": 1},
    ),
    "labels with an ending, in folders of domains": (
        ["spring/a_image.tif", "summer/b_image.tif"],
        ["spring/a_image_label.tif", "summer/b_image_label.tif"],
        "{domain}/*_image.tif", "{domain}/{stem}_label.tif", {"spring": 1, "summer": 1},
    ),
    "one label file for all dates": (
        ["scene_1.tif", "scene_2.tif"], ["landcover.tif"],
        "{domain}.tif", "landcover.tif", {"scene_1": 1, "scene_2": 1},
    ),
    "one label file for each place": (
        ["north/2019.tif", "north/2020.tif", "south/2019.tif"], ["north/labels.tif", "south/labels.tif"],
        None, "{domain}/labels.tif", {"north": 2, "south": 1},
    ),
    "numbers with other words before them": (
        ["img/image_1.tif", "img/image_2.tif"], ["gt/mask_1.tif", "gt/mask_2.tif"],
        "img/image_{domain}.tif", "gt/mask_{domain}.tif", {"1": 1, "2": 1},
    ),
    "many images of one folder": (
        [f"images/town_{n}.tif" for n in range(10, 22)], [f"labels/town_{n}.tif" for n in range(10, 22)],
        "images/town_{domain}.tif", "labels/{stem}.tif", {str(n): 1 for n in range(10, 22)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, tmp_path):
    images, labels, image_glob, mask_template, domains = LAYOUTS[name]
    for path in images:
        image(tmp_path / path)
    for path in labels:
        mask(tmp_path / path)
    if image_glob is None:  # labels beside images under the same ending
        with pytest.raises(Ambiguous, match=r"finds north/labels.tif as well.*--images$"):
            find_layout(tmp_path)
        image_glob = "{domain}/20*.tif"
        found = find_layout(tmp_path, image_glob)
    else:
        found = find_layout(tmp_path)
    assert (found.image_glob, found.mask_template) == (image_glob, mask_template)
    assert {domain: len(paths) for domain, paths in found.domains.items()} == domains
    assert {path.relative_to(tmp_path).as_posix() for path, _ in found.pairs} == set(images)
    assert {path.relative_to(tmp_path).as_posix() for _, path in found.pairs} == set(labels)
    assert found.unused == ()


def write_scenes(folder):
    for number in (1, 2):
        image(folder / f"scene_{number}.tif")
    mask(folder / "landcover.tif")
    write_raster(
        folder / "elevation.tif", np.random.default_rng(0).random((32, 32)).astype(np.float32), **PLACE
    )
    square = [(500_000, 5_000_000), (500_320, 5_000_000), (500_320, 4_999_680), (500_000, 4_999_680)]
    write_polygons(folder / "landcover.geojson", [("wood", square)], "cover", 32633)


def test_labels_of_two_kinds_are_ambiguous(tmp_path):
    write_scenes(tmp_path)
    with pytest.raises(Ambiguous) as error:
        find_layout(tmp_path)
    assert error.value.option == "--labels"
    assert set(error.value.choices) == {"landcover.tif", "landcover.geojson"}
    found = find_layout(tmp_path, mask_template="landcover.geojson")
    assert found.polygons
    assert set(found.unused) == {"elevation.tif: 1 band of float32", "landcover.tif: 1 band of uint8"}


def test_images_of_two_kinds_are_ambiguous(tmp_path):
    for number in (1, 2):
        image(tmp_path / f"optical/{number}.tif")
        image(tmp_path / f"radar/{number}.tif", bands=2)
        mask(tmp_path / f"labels/{number}.tif")
    with pytest.raises(Ambiguous, match=r"optical/#.tif: 4 bands.*radar/#.tif: 2 bands.*--images$"):
        find_layout(tmp_path)
    found = find_layout(tmp_path, "radar/{domain}.tif")
    assert found.mask_template == "labels/{stem}.tif"
    assert "optical/#.tif: 4 bands of uint16, 2 files" in found.unused


def test_a_label_file_of_another_size_is_none_of_all_images(tmp_path):
    image(tmp_path / "a.tif")
    image(tmp_path / "b.tif")
    mask(tmp_path / "label.tif", size=16)
    with pytest.raises(
        Ambiguous, match=r"no labels found that go with all images, such as a.tif \(label.tif\).*--labels$"
    ):
        find_layout(tmp_path)


def test_images_without_labels(tmp_path):
    image(tmp_path / "a/images/1.tif")
    image(tmp_path / "b/images/1.tif")
    mask(tmp_path / "a/masks/1.tif")
    with pytest.raises(UserError, match=r"b/images/1.tif: it has no labels .*b/masks/1.tif"):
        find_layout(tmp_path, mask_template="{domain}/masks/{stem}.tif")


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_layout(tmp_path / "none")
    with pytest.raises(UserError, match=r"no images found \(no raster files\).*--images"):
        find_layout(tmp_path)


def test_many_domains_of_one_image_each(tmp_path):
    for number in range(61):
        image(tmp_path / f"images/{('east', 'west')[number % 2]}_{number}.tif", size=4)
        mask(tmp_path / f"labels/{('east', 'west')[number % 2]}_{number}.tif", size=4)
    with pytest.raises(
        Ambiguous, match=r"61 images in one folder \(names start with east, west\).*--images$"
    ):
        find_layout(tmp_path)
    assert {d: len(p) for d, p in find_layout(tmp_path, "images/{domain}_*.tif").domains.items()} == {
        "east": 31, "west": 30,
    }  # fmt: skip


def test_roles_by_content(tmp_path):
    """Few values or colours are labels; photographs, heights and JPEGs are not, whatever they are called."""
    rng = np.random.default_rng(0)
    cases = {
        "codes.tif": (rng.integers(0, 9, (40, 40)).astype(np.uint8), True),
        "whole.tif": (rng.integers(0, 9, (40, 40)).astype(np.float32), True),
        "painted.png": (rng.integers(0, 2, (40, 40, 3)).astype(np.uint8) * 200, True),
        "photo.png": (rng.integers(0, 255, (40, 40, 3)).astype(np.uint8), False),
        "labels/photo.png": (rng.integers(0, 255, (40, 40, 3)).astype(np.uint8), False),
        "height.tif": (rng.random((40, 40)).astype(np.float32), False),
        "mask.jpg": (np.zeros((40, 40), np.uint8), False),
        "images/codes.tif": (rng.integers(0, 9, (40, 40)).astype(np.uint8), False),
        "masks/image_1.tif": (rng.integers(0, 200, (40, 40)).astype(np.uint8), True),
    }
    drivers = {".png": "PNG", ".jpg": "JPEG", ".tif": "GTiff"}
    for name, (pixels, expected) in cases.items():
        path = write_raster(tmp_path / name, pixels, driver=drivers[(tmp_path / name).suffix])
        assert looks_like_labels(path, path.relative_to(tmp_path)) == expected, name


# images without labels, and the labels that the others have
MISSING = {
    "in folders of domains": (
        ["a/images/i0.tif", "a/images/i1.tif", "b/images/i0.tif", "b/images/i1.tif"],
        ["a/labels/i0.tif", "a/labels/i1.tif", "b/labels/i0.tif"],
        "b/images/i1.tif", "b/labels/i1.tif",
    ),
    "the first": (
        ["a/images/i0.tif", "a/images/i1.tif", "b/images/i0.tif", "b/images/i1.tif"],
        ["a/labels/i1.tif", "b/labels/i0.tif", "b/labels/i1.tif"],
        "a/images/i0.tif", "a/labels/i0.tif",
    ),
    "of one folder": (["images/p.tif", "images/q.tif"], ["masks/p.tif"], "images/q.tif", "masks/q.tif"),
    "with an ending": (["p.tif", "q.tif"], ["q_mask.tif"], "p.tif", "p_mask.tif"),
    "beside labels of all": (["p1.tif", "p2.tif"], ["p1_label.tif", "cover.tif"], "p2.tif", "p2_label.tif"),
    "of a whole domain": (
        ["a/images/a0.tif", "b/images/b0.tif", "c/images/c0.tif"], ["a/labels/a0.tif", "b/labels/b0.tif"],
        "c/images/c0.tif", "c/labels/c0.tif",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_label_is_named(name, tmp_path):
    """No other image's labels take its place."""
    images, labels, lacking, expected = MISSING[name]
    for path in images:
        image(tmp_path / path)
    for path in labels:
        mask(tmp_path / path)
    with pytest.raises(UserError) as error:
        find_layout(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / lacking}: it has no labels {tmp_path / expected}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["landsat5_image.tif", "landsat7_image.tif"], ["landsat5_label.tif"]),
        (["img/image_1.tif", "img/image_2.tif"], ["gt/mask_1.tif"]),
        (["1/i1.tif", "1/i2.tif", "2/i1.tif", "2/i2.tif"], ["1/labels/i1.tif", "2/labels/i2.tif"]),
        (["a/images/1.tif", "b/images/1.tif"], ["b/labels.tif"]),
    ],
)
def test_labels_of_one_domain_are_not_those_of_all(images, labels, tmp_path):
    for path in images:
        image(tmp_path / path)
    for path in labels:
        mask(tmp_path / path)
    with pytest.raises(UserError, match=r"no labels"):
        find_layout(tmp_path)


def test_labels_that_no_image_is_named_after(tmp_path):
    """Letters of words, and digits of numbers, are no names."""
    for name in ("a.tif", "b.tif"):
        image(tmp_path / "letters" / name)
    mask(tmp_path / "letters/label.tif")
    assert find_layout(tmp_path / "letters").mask_template == "label.tif"
    for name in ("1.tif", "9.tif"):
        image(tmp_path / "digits" / name)
    mask(tmp_path / "digits/labels_2019.tif")
    assert find_layout(tmp_path / "digits").mask_template == "labels_2019.tif"


def test_links_to_folders_are_followed(tmp_path):
    """As a search with patterns does; a link to a folder that it is in ends."""
    for kind, write in {"images": image, "labels": mask}.items():
        for number in (1, 2):
            write(tmp_path / f"elsewhere/south/{kind}/{number}.tif")
            write(tmp_path / f"{kind}/{number}.tif")
    root = tmp_path / "root"
    (root / "north").mkdir(parents=True)
    (root / "south").symlink_to("../elsewhere/south")
    for kind in ("images", "labels"):
        (root / "north" / kind).symlink_to(f"../../{kind}")
    expected = [
        root / place / kind / f"{number}.tif"
        for place in ("north", "south") for kind in ("images", "labels") for number in (1, 2)
    ]  # fmt: skip
    assert find_files(root, [".tif"]) == expected
    layout = find_layout(root)
    assert (layout.image_glob, layout.mask_template) == (
        "{domain}/images/*.tif", "{domain}/labels/{stem}.tif",
    )  # fmt: skip
    assert len(layout.images) == 4
    (root / "all").symlink_to("..")  # around the folder
    (root / "itself").symlink_to(".")
    (tmp_path / "elsewhere/south/back").symlink_to("../../root")  # through another link
    assert find_files(root, [".tif"]) == expected
