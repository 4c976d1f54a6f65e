"""The configuration of each benchmark against its published training settings."""

import pytest

from data_pipelines.datasets import DATASETS, get_dataset
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.models.build import segmenter_config

TILES_TIMES_EPOCHS = {  # of the published schedules: tiles of the source, epochs, batch
    "whu_ohs": (2189, 20, 4),
    "fbp_cross_sensor": (150 * 210, 20, 8),
    "fbp_cross_geospatial": (126 * 210, 20, 8),
    "flair": (61_712, 10, 8),
    "loveda": ((1366 + 992) * 4, 20, 8),
    "potsdam_vaihingen": (5472, 20, 8),
    "open_earth_map": (8200, 20, 8),
}
EXPERTS = {"loveda": 3, "open_earth_map": 3}
WITH_DOFA = ("fbp_cross_sensor", "fbp_cross_geospatial", "flair")


@pytest.fixture(params=DATASETS)
def name(request):
    return request.param


def test_a_config_fits_its_benchmark(name):
    config, benchmark = load_config(f"configs/{name}.py"), get_dataset(name)
    assert (config.name, config.data.kind, config.data.benchmark) == (name, "prepared", name)
    assert tuple(config.bands) == tuple(benchmark.bands)
    assert tuple(config.classes.names) == tuple(benchmark.classes)
    assert tuple(config.classes.palette) == tuple(benchmark.palette)
    assert config.data.source == tuple(benchmark.source)
    assert config.data.target == tuple(benchmark.target)
    assert len(config.model.pixel_mean) == len(config.model.pixel_std) == len(benchmark.bands)


def test_the_published_schedule(name):
    config = load_config(f"configs/{name}.py")
    tiles, epochs, batch = TILES_TIMES_EPOCHS[name]
    assert config.train.batch_size == batch
    # The released files round the steps of an epoch up; WHU-OHS's is rounded in the whole.
    assert config.train.steps in (epochs * -(-tiles // batch), epochs * tiles // batch)
    assert (config.train.learning_rate, config.train.weight_decay) == (1e-4, 0.05)
    assert (config.train.betas, config.train.eps, config.train.power) == ((0.9, 0.999), 1e-8, 0.9)


def test_the_published_model(name):
    model = segmenter_config(load_config(f"configs/{name}.py"))
    assert model.visual.kind == ("dofa" if name == "whu_ohs" else "dinov3")
    assert (model.visual.layers, model.visual.width) == (24, 1024)
    assert model.adapter.num_experts == EXPERTS.get(name, 6)
    assert model.depth.layers == 24
    wanted = {"whu_ohs": (1, 6, 14), "fbp_cross_sensor": (1, 2, 3), "fbp_cross_geospatial": (1, 2, 3)}
    assert model.depth_bands == wanted.get(name, (0, 1, 2))
    assert segmenter_config(load_config(f"configs/{name}.py:experts=1")).adapter.num_experts == 1


def test_the_published_augmentation(name):
    augment = load_config(f"configs/{name}.py").augment
    scales = {3: (0.5, 2.0), 4: (0.6, 1.2), 32: (1.0, 1.0)}
    bands = len(get_dataset(name).bands)
    assert augment.scale == scales[bands]
    assert augment.photometric is (bands < 32)
    assert (augment.flip, augment.vertical_flip, augment.turns) == (0.5, 0.0, False)


@pytest.mark.parametrize("name", WITH_DOFA)
def test_the_dofa_variant_has_the_published_wavelengths(name):
    config = load_config(f"configs/{name}.py:dofa,experts=3")
    model = segmenter_config(config)
    centres = {"nir": 0.83, "red": 0.665, "green": 0.56, "blue": 0.49}
    assert model.visual.kind == "dofa"
    assert model.visual.wavelengths == tuple(centres[band] for band in config.bands)
    assert model.head.scales == (1.0, 1.0, 1.0, 1.0)
    assert model.adapter.num_experts == 3


def test_statistics_equal_the_reference(name, reference):
    text = " ".join((reference / "benchmarks.md").read_text().replace(",", "").split())
    model = load_config(f"configs/{name}.py").model
    if name == "whu_ohs":
        assert "divide by 10000 mean 0 std 1" in text
        assert {*model.pixel_mean} == {0.0}
        assert {*model.pixel_std} == {10000.0}
        return
    numbers = [[float(n) for n in part.split()] for part in _runs_of_numbers(text)]
    for wanted in (list(model.pixel_mean), list(model.pixel_std)):
        assert any(run[: len(wanted)] == wanted for run in numbers), wanted


def _runs_of_numbers(text: str) -> list[str]:
    import re

    return re.findall(r"(?:mean|std) ((?:\d+\.\d+ ?)+)", text, flags=re.IGNORECASE)
