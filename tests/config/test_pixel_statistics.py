"""Published pixel statistics, by name."""

import numpy as np
import pytest

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.pixel_statistics import STATISTICS, published_statistics
from spectralmoe_jax.config.presets import SENTINEL2_BANDS
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import segmenter_config

SENTINEL2 = "configs/sentinel2_landcover.py"
NONE = ["--config.model.pixel_mean=()", "--config.model.pixel_std=()"]


def configured(*overrides):
    return load_config(SENTINEL2, [*NONE, *(f"--config.{override}" for override in overrides)])


def test_the_window_of_softcon(goldens):
    """Two deviations on either side of the mean become 0 and 1; mean and deviation are the authors'."""
    mean, std = (np.array(values) for values in published_statistics("softcon", SENTINEL2_BANDS))
    with np.load(goldens / "encoders/softcon/a_56x56.npz") as golden:
        np.testing.assert_allclose(mean + std / 2, golden["mean"], rtol=1e-12)
        np.testing.assert_allclose(std / 4, golden["std"], rtol=1e-12)


def test_every_table_has_the_bands_of_sentinel2():
    for name, table in STATISTICS.items():
        missing = {"B10"} if name == "softcon_l2a" else set()
        assert set(table) == set(SENTINEL2_BANDS) - missing
        assert all(std > 0 for _, std in table.values())


def test_statistics_follow_the_bands():
    config = configured("model.pixel_statistics=copernicus_fm", "bands=swir22,B4,b08")
    settings = segmenter_config(config)
    assert settings.pixel_mean == (1537.4, 1373.1, 2318.7)
    assert settings.pixel_std == (1142.9, 1144.9, 1249.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model.pixel_statistics=sofcon",),
            "config.model.pixel_statistics = 'sofcon': must be one of softcon",
        ),
        (
            ("model.pixel_statistics=softcon", "model.pixel_mean=1,2", "model.pixel_std=1,2"),
            "config.model.pixel_statistics = 'softcon': give it or pixel_mean and pixel_std, not both",
        ),
        ((), "config.model.pixel_mean is missing: give one value for each band"),
        (
            ("model.pixel_statistics=softcon_l2a",),
            "config.model.pixel_statistics = 'softcon_l2a': has no statistics of the band B10, only of B01",
        ),
        (
            ("model.pixel_statistics=softcon", "sensor=landsat8", "bands=blue,green"),
            "config.model.pixel_statistics = 'softcon': has no statistics of the band blue",
        ),
    ],
)
def test_problems_name_the_key(overrides, message):
    with pytest.raises(UserError) as error:
        segmenter_config(configured(*overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
