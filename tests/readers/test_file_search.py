"""Finding images: patterns, lists and paths, and the domains that they name."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.readers.file_search import find_images, mask_path, record_names
from spectralmoe_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    for name in ("a/images/1.tif", "a/images/2.tif", "a/deep/er/3.tif", "b/images/1.tif", "b/images/x.png",
                 "b1/images/1.tif", "top.tif"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(root, pattern, domains=None):
    return [
        (domain, path.relative_to(root).as_posix()) for domain, path in find_images(root, pattern, domains)
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/images/*.tif", ["a a/images/1.tif", "a a/images/2.tif", "b b/images/1.tif",
                            "b1 b1/images/1.tif"]),
        ("{domain}/images/1.tif", ["a a/images/1.tif", "b b/images/1.tif", "b1 b1/images/1.tif"]),
        ("*/images/{domain}.tif", ["1 a/images/1.tif", "1 b/images/1.tif", "1 b1/images/1.tif",
                                   "2 a/images/2.tif"]),
        ("a/**/*.tif", ["a a/deep/er/3.tif", "a a/images/1.tif", "a a/images/2.tif"]),
        ("a/**/{domain}.tif", ["3 a/deep/er/3.tif", "1 a/images/1.tif", "2 a/images/2.tif"]),
        ("**/{domain}/*.tif", ["er a/deep/er/3.tif", "images a/images/1.tif", "images a/images/2.tif",
                               "images b/images/1.tif", "images b1/images/1.tif"]),
        ("[bc]*/images/1.tif", ["b b/images/1.tif", "b1 b1/images/1.tif"]),
        ("[!b]/images/{domain}.tif", ["1 a/images/1.tif", "2 a/images/2.tif"]),
        ("{domain}/images/[1x].*", ["a a/images/1.tif", "b b/images/1.tif", "b b/images/x.png",
                                    "b1 b1/images/1.tif"]),
        ("b?/images/*", ["b1 b1/images/1.tif"]),
        ("*.tif", ["top top.tif"]),
        (("a/images/2.tif", "a/images/*.tif", "*.tif"), ["a a/images/2.tif", "a a/images/1.tif",
                                                         "top top.tif"]),
    ],
)  # fmt: skip
def test_patterns(root, pattern, expected):
    assert [" ".join(place) for place in found(root, pattern)] == expected


def test_hidden_files_are_ignored(root):
    (root / "a" / "images" / "._1.tif").touch()
    assert found(root, "a/images/*.tif") == [("a", "a/images/1.tif"), ("a", "a/images/2.tif")]


@given(
    st.text("ab", min_size=1, max_size=6),
    st.text("ab*?", min_size=1, max_size=6).filter(lambda pattern: "**" not in pattern),
)
def test_every_match_of_a_pattern_has_its_domain(tmp_path_factory, name, pattern):
    """Whatever the standard library says a pattern matches, and nothing else."""
    root = tmp_path_factory.mktemp("p")
    (root / "d").mkdir()
    (root / "d" / name).touch()
    if fnmatch.fnmatchcase(name, pattern):
        assert find_images(root, "{domain}/" + pattern, None) == [("d", root / "d" / name)]
    else:
        with pytest.raises(UserError, match="no image matches"):
            find_images(root, "{domain}/" + pattern, None)


def test_a_list_of_paths(root, tmp_path):
    """Its order is kept; a path elsewhere is of the folder that it lies in; empty lines say nothing."""
    other = tmp_path / "else where" / "ü.tif"
    other.parent.mkdir()
    other.touch()
    (root / "list.txt").write_text(f"b/images/x.png\n\n  a/images/2.tif  \n{other}\n", encoding="utf-8")
    (tmp_path / "more.txt").write_text("b1/images/*.tif\nb/images/x.png\n")
    expected = [("b", root / "b/images/x.png"), ("a", root / "a/images/2.tif"), ("else where", other)]
    assert find_images(root, "list.txt", None) == expected
    both = find_images(root, ("list.txt", str(tmp_path / "more.txt")), None)
    assert both == [*expected, ("b1", root / "b1/images/1.tif")]
    assert find_images(root, "list.txt", ("else where",)) == expected[2:]
    names = record_names(root, both)
    assert names == ["b/images/x", "a/images/2", str(other.with_suffix("")), "b1/images/1"]


def test_an_absolute_path_is_a_pattern(root):
    assert found(root, str(root / "a/images/1.tif")) == [("a", "a/images/1.tif")]


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("none.txt", ["none.txt: cannot be read as a list of images", "data.image_glob"]),
        ("latin.txt", ["latin.txt: cannot be read as a list of images"]),
        ("empty.txt", ["data.image_glob='empty.txt' names no image"]),
        ((), ["names no image"]),
        (("*/images/*.tif", "*.jp2"), ["no image matches data.image_glob='*.jp2'"]),
        ("", ["data.image_glob=''"]),
        ("/*/x.tif", ["no image matches data.image_glob='/*/x.tif'"]),
    ],
)
def test_patterns_and_lists_without_a_match(root, pattern, parts):
    (root / "empty.txt").write_text("\n \n")
    (root / "latin.txt").write_bytes("a/ü.tif".encode("latin-1"))
    with pytest.raises(UserError) as error:
        find_images(root, pattern, None)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def test_masks_by_domain_and_name(root):
    assert mask_path(root, "m/{domain}_{stem}.png", "a", root / "x/1.b.tif") == root / "m/a_1.b.png"
    for template in ("{name}.png", "{0}.png", "{stem"):
        with pytest.raises(UserError, match=r"only \{domain\}, \{stem\} and \{path\} can stand in it"):
            mask_path(root, template, "a", root / "1.tif")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_as_editors_save_them(encoding, end, tmp_path):
    names = ("a/one.tif", "a/söm.tif", "b/two.tif")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes(end.join(names).encode(encoding))
    assert [path for _, path in find_images(tmp_path, "list.txt", None)] == [
        tmp_path / name for name in names
    ]


def test_links_to_folders_and_back(tmp_path):
    """`**` goes through links, each file once, and not for ever where a link leads back."""
    root, store = tmp_path / "root", tmp_path / "store"
    (store / "2020" / "deep").mkdir(parents=True)
    (store / "2020" / "s.tif").touch()
    (store / "2020" / "deep" / "t.TIF").touch()
    (store / "2020" / "back").symlink_to(store)
    (root / "own").mkdir(parents=True)
    (root / "own" / "u.tif").touch()
    (root / "linked").symlink_to(store)
    found = [path.relative_to(root).as_posix() for _, path in find_images(root, "**/*.tif", None)]
    assert sorted(found) == ["linked/2020/deep/t.TIF", "linked/2020/s.tif", "own/u.tif"]
    domains = {domain for domain, _ in find_images(root, "{domain}/**/*.tif", None)}
    assert domains == {"linked", "own"}


def test_suffixes_in_capitals_and_small_letters(tmp_path):
    for name in ("a/x.tif", "a/y.TIF", "a/z.Tif", "a/w.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path, "{domain}/*.tif", None)
    assert [(domain, path.name) for domain, path in found] == [("a", "x.tif"), ("a", "y.TIF"), ("a", "z.Tif")]
    assert mask_path(tmp_path, "{domain}/{stem}.tif", "a", tmp_path / "i/y.png") == tmp_path / "a/y.TIF"
    assert mask_path(tmp_path, "{domain}/{stem}.TIF", "a", tmp_path / "i/x.png") == tmp_path / "a/x.tif"
    assert mask_path(tmp_path, "{domain}/{stem}.tif", "a", tmp_path / "i/none.png") == tmp_path / "a/none.tif"


@pytest.mark.parametrize(
    ("template", "image", "mask"),
    [
        ("{stem:_image->_label}.tif", "a/7_image.tif", "7_label.tif"),
        ("{stem:_image$->_label}.tif", "a/an_image_image.tif", "an_image_label.tif"),
        ("{path:^(.*)/images/->\\1/masks/}.png", "a/images/x/7.jpg", "a/masks/x/7.png"),
        (r"l/{stem:.*img(\d{2})->buildings_\1}.tif", "a/PS-RGB_img12.tif", "l/buildings_12.tif"),
        ("{domain:a->b}/{stem:x->}.tif", "a/xyx.tif", "b/y.tif"),
        ("{{{stem}}}.tif", "a/7.tif", "{7}.tif"),
        ("{path}_label.tif", "a/b/7.tif", "a/b/7_label.tif"),
    ],
)
def test_masks_under_other_names(template, image, mask, tmp_path):
    assert mask_path(tmp_path, template, "a", tmp_path / image) == tmp_path / mask


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{stem:_mask->_label}.tif",
            "'_mask' of data.mask_template='{stem:_mask->_label}.tif' does not match",
        ),
        ("{stem:(->x}.tif", "'(' is no regular expression"),
        ("{stem:7->\\4}.tif", "is no regular expression with the replacement"),
        ("{stem:7}.tif", "{stem:7} names no replacement"),
        ("{stem!r}.tif", "can stand in it"),
        ("{stem}}.tif", "can stand in it"),
    ],
)
def test_templates_that_cannot_be(template, said, tmp_path):
    with pytest.raises(UserError) as error:
        mask_path(tmp_path, template, "a", tmp_path / "a/7.tif")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
