"""The panel picture: its size, its contents, and rejected inputs."""

import numpy as np
import pytest
from PIL import Image

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.preview import EXPERT_COLOURS, stretch, write_panel

NAMES, PALETTE = ("land", "water"), ((200, 180, 20), (20, 60, 210))


def scenes(count):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 3000, (64, 64, 4)).astype(np.uint16) for _ in range(count)]
    truths = [np.repeat([[0, 1]], 64, 0).repeat(32, 1).astype(np.uint8) for _ in range(count)]
    predictions = [1 - truth for truth in truths]
    experts = [{"layer 1": np.array([[0, 1], [2, 3]]), "layer 2": np.full((4, 4), i)} for i in range(count)]
    return images, truths, predictions, experts


def count_of(picture, colour) -> int:
    return int((picture == np.array(colour, np.uint8)).all(axis=-1).sum())


def test_every_column_fits_the_width(tmp_path):
    path = tmp_path / "deep" / "panel.png"
    write_panel(
        path, *scenes(3), names=NAMES, palette=PALETTE, expert_count=4,
        titles=["source\nA", "target\nB", "c"], rgb_bands=(2, 1, 0),
        false_colour_bands=(3, 2, 1), heading="A heading",
    )  # fmt: skip
    picture = np.asarray(Image.open(path).convert("RGB"))
    height, width, _ = picture.shape
    assert 1500 < width <= 1800
    assert 600 < height < 1200
    cell = count_of(picture, PALETTE[0]) / (3 * 2 / 2)  # half of truth and of prediction, in three rows
    assert 180**2 < cell < 280**2
    assert count_of(picture, PALETTE[1]) == pytest.approx(3 * cell, rel=0.02)
    quarter = [count_of(picture, EXPERT_COLOURS[e]) for e in range(4)]
    expected = np.array([3 / 4 + 1, 3 / 4 + 1, 3 / 4 + 1, 3 / 4]) * cell
    np.testing.assert_allclose(quarter, expected, rtol=0.02)
    assert list(path.parent.iterdir()) == [path]


def test_truth_is_upright_and_left_of_the_prediction(tmp_path):
    images, truths, _, _ = scenes(1)
    truths[0][:32] = 255
    prediction = np.ones_like(truths[0])
    path = tmp_path / "panel.png"
    write_panel(path, images, truths, [prediction], names=NAMES, palette=PALETTE, error=False)
    picture = np.asarray(Image.open(path).convert("RGB"))
    land = np.argwhere((picture == PALETTE[0]).all(-1))
    water = np.argwhere((picture == PALETTE[1]).all(-1))
    below = picture.shape[0] - 95  # the legend
    land, water = land[land[:, 0] < below], water[water[:, 0] < below]
    assert land[:, 0].min() > water[:, 0].min() + 100  # the unlabelled half of the truth is above
    assert land[:, 1].max() < water[:, 1].max() - 250  # the prediction is to the right


def test_stretch_follows_the_percentiles():
    ramp = np.repeat(np.linspace(100, 1100, 101)[:, None], 3, -1)[None]
    picture = stretch(ramp, gamma=1.0)
    np.testing.assert_allclose(picture[0, 1:99, 0], np.arange(98) / 97, atol=1e-9)
    assert picture[0, 0, 0] == 0
    assert picture[0, -1, 0] == 1
    assert not stretch(np.full((4, 4, 3), np.nan)).any()
    assert np.isfinite(stretch(np.full((4, 4, 3), 7))).all()


def test_inconsistent_inputs_are_rejected(tmp_path):
    images, truths, predictions, experts = scenes(2)
    settings = {"names": NAMES, "palette": PALETTE, "expert_count": 3}
    with pytest.raises(ValueError, match="from 0 to 2"):
        write_panel(tmp_path / "p.png", images, truths, predictions, experts, **settings)
    with pytest.raises(ValueError, match="every scene"):
        write_panel(tmp_path / "p.png", images[:1], truths, predictions, **settings)
    with pytest.raises(ValueError, match="do not fit"):
        write_panel(tmp_path / "p.png", images, [t[1:] for t in truths], predictions, **settings)
    with pytest.raises(UserError, match=r"p\.jpg.*\.png"):
        write_panel(tmp_path / "p.jpg", images, truths, predictions, **settings)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/p\.png"):
        write_panel(tmp_path / "file" / "p.png", images, truths, predictions, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
