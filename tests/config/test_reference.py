"""Configurations written out: whole ones read back equal, and the reference page is current."""

from pathlib import Path

import pytest

from spectralmoe_jax.config.fields import keys_of
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.config.reference import reference, show_config

ROOT = Path(__file__).resolve().parents[2]

STREAMS = {"b": {"weight": 2.0, "sensor": "landsat8"}}


@pytest.mark.parametrize("name", shipped_files("configs"))
def test_a_whole_configuration_reads_back_equal(name, tmp_path):
    config = load_config(name)
    (tmp_path / "whole.py").write_text(show_config(config))
    whole = load_config(str(tmp_path / "whole.py"))
    assert whole == config
    for section in ("data", "augment", "loss", "train", "evaluate", "parallel"):
        assert whole.given[section].keys() == keys_of(type(getattr(config, section))).keys()


@pytest.mark.parametrize(
    "values",
    [
        {"model.adapter": {"kind": "rein", "num_tokens": 20, "query_dim": 64}},
        {"model.adapter": {"kind": "mine.py:Mine", "size": 3}},
        {"model.head": {"kind": "linear"}},
        {"streams": STREAMS, "weight": 0.5},
        {"data.kind": "geotiff", "data.sensors": {"a": "landsat5"}},
    ],
)
def test_other_kinds_and_streams_read_back_equal(values, tmp_path):
    config = load_config("dubai").replaced(values)
    (tmp_path / "whole.py").write_text(show_config(config))
    assert load_config(str(tmp_path / "whole.py")) == config


def test_where_a_value_comes_from():
    lines = show_config("flair").splitlines()
    assert "    config.seed = 0" in lines
    assert "    config.model.visual.width = 1024  # preset dinov3_l" in lines
    assert "    config.model.visual.mlp_ratio = 4.0  # default" in lines
    assert "    config.model.adapter.distance = 'l2'  # preset released" in lines
    assert "    config.model.adapter.kind = 'spectral_moe'  # default" in lines


def test_the_reference_page_is_current():
    """Mended by `spectralmoe config --reference > docs/configuration.md`."""
    assert (ROOT / "docs/configuration.md").read_text() == reference()
