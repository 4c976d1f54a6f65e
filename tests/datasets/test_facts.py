"""Facts of the benchmarks against the reference and published numbers."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS, get_dataset, tile_reader
from data_pipelines.datasets.builder import builder_class
from data_pipelines.datasets.five_billion_pixels import inside_border
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import SENSORS

CLASSES = {
    "whu_ohs": 7, "fbp_cross_sensor": 24, "fbp_cross_geospatial": 24, "flair": 12, "loveda": 7,
    "potsdam_vaihingen": 6, "open_earth_map": 8,
}  # fmt: skip
BANDS = {
    "whu_ohs": 32, "fbp_cross_sensor": 4, "fbp_cross_geospatial": 4, "flair": 4, "loveda": 3,
    "potsdam_vaihingen": 3, "open_earth_map": 3,
}  # fmt: skip
VAIHINGEN = {  # width and height of the published images
    "vaihingen_train": {
        1: (1919, 2569), 3: (2006, 3007), 5: (1887, 2557), 7: (1887, 2557), 11: (1893, 2566),
        13: (2818, 2558), 15: (1919, 2565), 17: (2336, 1281), 21: (1903, 2546), 23: (1903, 2546),
        26: (2995, 1783), 28: (1917, 2567), 30: (1934, 2563), 32: (1980, 2555), 34: (1388, 2555),
        37: (1996, 1995),
    },
    "vaihingen_test": {
        2: (2428, 2767), 4: (1887, 2557), 6: (1887, 2557), 8: (1887, 2557), 10: (1887, 2557),
        12: (1922, 2575), 14: (1919, 2565), 16: (1919, 2565), 20: (1866, 2315), 22: (1903, 2546),
        24: (1903, 2546), 27: (1917, 3313), 29: (1917, 2563), 31: (1980, 2555), 33: (1581, 2555),
        35: (2805, 1884), 38: (3816, 2550),
    },
}  # fmt: skip


@pytest.fixture(params=DATASETS)
def benchmark(request):
    return get_dataset(request.param)


def test_facts_are_complete(benchmark):
    assert len(benchmark.classes) == len(benchmark.palette) == CLASSES[benchmark.name]
    assert len(set(benchmark.palette)) == len(set(benchmark.classes)) == len(benchmark.classes)
    assert len(benchmark.bands) == BANDS[benchmark.name]
    assert {*benchmark.source, *benchmark.target, *benchmark.holdout, *benchmark.counts} <= {
        *benchmark.splits
    }
    assert not {*benchmark.source} & {*benchmark.target}
    for fact in (benchmark.title, benchmark.licence, benchmark.citation, benchmark.download):
        assert fact.strip()
    assert benchmark.homepage.startswith("http")
    assert re.match(r"@\w+\{\w+,", benchmark.citation)
    assert benchmark.download == builder_class(benchmark.name).MANUAL_DOWNLOAD_INSTRUCTIONS
    assert builder_class(benchmark.name).name == benchmark.name


def test_sensors_have_the_bands(benchmark):
    for sensor in benchmark.sensors.values():
        known = SENSORS[sensor].known_as()
        if sensor != "aerial_nirrg":  # of Vaihingen, whose bands lie where Potsdam has others
            assert all(band in known for band in benchmark.bands)


@pytest.mark.parametrize("name", DATASETS)
def test_colours_and_classes_equal_the_reference(name, reference):
    text = " ".join((reference / "benchmarks.md").read_text().split())
    benchmark = get_dataset(name)
    colours = [",".join(map(str, colour)) for colour in benchmark.palette]
    if name == "potsdam_vaihingen":
        pairs = zip(("impervious", *benchmark.classes[1:]), colours, strict=True)
        assert "; ".join(f"{word} {colour}" for word, colour in pairs) in text
    else:
        assert " ".join(colours) in text
        if name not in ("whu_ohs", "loveda"):  # whose classes have other words between them there
            assert ", ".join(benchmark.classes) in text
    for number in benchmark.checksums.values():
        assert number in text


def test_five_billion_pixels_gives_31500_tiles():
    area = inside_border(None, SimpleNamespace(height=6908, width=7300))
    assert area == Window(54, 60, 6800, 7200)
    cells = tile_reader.padded(area)
    assert len(cells) * get_dataset("fbp_cross_sensor").counts["gaofen2"] == 31_500
    assert len({cell.row for cell in cells}) == 14
    assert len({cell.col for cell in cells}) == 15


def test_isprs_images_give_the_published_numbers_of_tiles():
    potsdam = tile_reader.flush(Window(0, 0, 6000, 6000))
    counts = get_dataset("potsdam_vaihingen").counts
    assert len(set(potsdam)) * counts["potsdam"] == 5472
    for split, tiles in (("vaihingen_train", 344), ("vaihingen_test", 398)):
        sizes = VAIHINGEN[split].values()
        assert len(sizes) == counts[split]
        assert (
            sum(len(set(tile_reader.flush(Window(0, 0, height, width)))) for width, height in sizes) == tiles
        )


@pytest.mark.parametrize("height", [1, 511, 512, 513, 1024, 1300])
def test_flush_tiles_cover_everything_and_stay_inside(height):
    seen = np.zeros((height, 700), int)
    for row, col, tall, wide in tile_reader.flush(Window(0, 0, height, 700)):
        assert (tall, wide) == (512, 512)
        assert row + tall <= max(height, 512)
        assert col + wide <= 700
        seen[row : row + tall, col : col + wide] += 1
    assert seen.min() == 1


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean loveda"):
        get_dataset("loveDA")
    with pytest.raises(UserError, match="there are whu_ohs, fbp_cross_sensor"):
        get_dataset("imagenet")


def test_importing_a_benchmark_is_light():
    import subprocess
    import sys

    script = (
        "import sys; from data_pipelines.datasets import get_dataset; get_dataset('flair');"
        "assert not {'jax', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
