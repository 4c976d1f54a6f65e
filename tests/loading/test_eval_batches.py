"""Evaluation reads every image once, for any batch size, number of workers and number of hosts."""

import numpy as np
import pytest

from data_pipelines.loader import eval_batches
from data_pipelines.records import ArraySource
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import Tally
from spectralmoe_jax.evaluation.score_table import make_report, score


@pytest.fixture(scope="module")
def source():
    """Seven images of sizes up to 16 in two domains."""
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (9, 16), (16, 5), (1, 1), (12, 12), (16, 16), (3, 14)]
    return ArraySource(
        {
            ("ab"[i % 2], str(i)): (rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 4, size))
            for i, size in enumerate(sizes)
        }
    )


@pytest.mark.parametrize(
    ("batch_size", "hosts", "workers"), [(1, 1, 0), (3, 1, 0), (4, 2, 0), (4, 4, 0), (8, 2, 0), (4, 2, 2)]
)
def test_every_image_comes_once(source, batch_size, hosts, workers):
    per_host = [
        list(eval_batches(source, source.records, 16, batch_size=batch_size, workers=workers, host_index=host,
                          host_count=hosts))
        for host in range(hosts)
    ]  # fmt: skip
    assert {len(batches) for batches in per_host} == {-(-7 // batch_size)}
    rows = [row for step in zip(*per_host, strict=True) for batch in step for row in zip(
        batch["image"], batch["label"], batch["valid"], batch["record"], strict=True)]  # fmt: skip
    assert [int(number) for *_, number in rows] == [*range(7), *[-1] * (len(rows) - 7)]
    for image, label, valid, number in rows:
        assert image.shape == (16, 16, 3)
        assert valid == (number >= 0)
        if not valid:
            assert (label == 255).all()
            continue
        record = source.records[number]
        inside = np.s_[: record.height, : record.width]
        np.testing.assert_array_equal(image[inside], source.read_image(record))
        np.testing.assert_array_equal(label[inside], source.read_label(record))
        assert (label == 255).sum() == 256 - record.height * record.width


def test_scores_equal_those_of_whole_images(source):
    """One tile a window gives what sliding windows give, for a predictor that looks at neighbours."""

    def predict(tiles):
        light = tiles.astype(np.float32).mean(axis=-1) + 0.1 * np.roll(tiles[..., 0], 1, axis=2)
        return np.stack([(1 + k + np.cos(light / (5 + k))) for k in range(4)], axis=-1)

    names = ("w", "x", "y", "z")
    batches = eval_batches(source, source.records, 16, batch_size=3)
    tally = Tally(names)
    tally.count_tiles(predict, batches, source.records)
    tiled = make_report(tally)
    examples = (
        (record.domain, record.name, source.read_image(record), source.read_label(record))
        for record in source.records
    )
    whole = score(predict, examples, names, EvaluateConfig(16, 4, 2))
    assert tiled == whole
    assert tiled["images"] == 7
    assert 0 < tiled["miou"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 15}, r"a/0: 16 x 16 pixels, more than 15"),
        ({"batch_size": 3, "host_count": 2}, r"evaluate\.batch_size = 3"),
        ({"records": ()}, "empty"),
    ],
)
def test_bad_arguments(source, settings, message):
    given = {"records": source.records, "size": 16, "batch_size": 4, **settings}
    with pytest.raises(UserError, match=message):
        eval_batches(source, given.pop("records"), given.pop("size"), **given)
