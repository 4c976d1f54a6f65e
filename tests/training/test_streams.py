"""Several sensors in one run: the order of batches, and shared parameters."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.loader import interleave, schedule
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import evaluate
from spectralmoe_jax.inference.segmenter_weights import load_trained
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.training.train import build_experiment, train

SENSORS = {"wide": ("red", "green", "blue"), "narrow": ("nir", "red", "green", "blue")}


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_every_stream_has_its_share_at_any_time(weights):
    named = {str(i): weight for i, weight in enumerate(weights)}
    counts = dict.fromkeys(named, 0)
    for step, (name, number) in enumerate(itertools.islice(schedule(named), 200), start=1):
        assert number == counts[name]
        counts[name] += 1
        for stream, weight in named.items():
            assert abs(counts[stream] - step * weight / sum(weights)) < 1


@given(st.integers(0, 40))
def test_batches_are_the_same_from_any_start(start):
    weights = {"a": 2.0, "b": 1.0, "c": 0.3}

    def make_batches(name, number):
        return ((name, n) for n in itertools.count(number))

    whole = list(itertools.islice(interleave(weights, make_batches, 0), 60))
    assert list(itertools.islice(interleave(weights, make_batches, start), 60 - start)) == whole[start:]
    assert [batch["a"][1] for batch in whole if "a" in batch] == list(
        range(len([batch for batch in whole if "a" in batch]))
    )  # 60 * 2 / 3.3, rounded


def write_images(root, bands):
    """A source and a target place, two images each: a bright half of one class, a dark half of the other."""
    rng = np.random.default_rng(len(bands))
    for place in ("here", "there"):
        for part in ("images", "masks"):
            (root / place / part).mkdir(parents=True)
        for number in range(2):
            mask = np.zeros((32, 32), np.uint8)
            mask[:, 16:] = 1
            image = rng.integers(0, 60, (32, 32, len(bands)), np.uint8) + 150 * mask[..., None]
            cv2.imwrite(str(root / place / "images" / f"{number}.png"), image)
            cv2.imwrite(str(root / place / "masks" / f"{number}.png"), mask)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensors")
    for name, bands in SENSORS.items():
        write_images(folder / name, bands)
    tiny = [
        "model.visual.kind=dofa", "model.visual.width=16", "model.visual.patch_size=8",
        "model.visual.storage_tokens=0", "model.adapter.num_tokens=6", "model.adapter.query_dim=16",
        "model.adapter.rank=2", "model.head.kind=linear", "data.crop=32",
        "train.batch_size=2", "train.steps=4", "train.warmup_steps=1", "train.log_every=1",
        "train.evaluate_every=4", "train.checkpoint_every=2", "evaluate.window=32", "evaluate.overlap=0",
        f"data.root={folder / 'wide'}", "data.image_glob=*/images/*.png", "data.source=here,",
        "data.target=there,", "data.holdout=0.5", "augment.photometric=false",
    ]  # fmt: skip
    config = load_config("configs/dubai.py", [f"--config.{value}" for value in tiny])
    narrow = {
        "bands": SENSORS["narrow"],
        "data": {"root": str(folder / "narrow"), "file_bands": SENSORS["narrow"]},  # no alpha
        "model": {"pixel_mean": (100.0,) * 4, "pixel_std": (60.0,) * 4},
    }
    classes = {"names": ("dark", "bright"), "palette": ((0, 0, 0), (255, 255, 255))}
    return config.replaced({"classes": classes, "data.ignore_colours": (), "streams": {"narrow": narrow}})


def test_streams_override_the_main_section(config):
    main, narrow = config.every_stream.values()
    assert (main.bands, narrow.bands) == tuple(SENSORS.values())
    assert narrow.data.crop == main.data.crop
    assert not narrow.streams
    assert (main.weight, narrow.weight) == (1.0, 1.0)


@pytest.mark.slow
def test_one_run_on_two_sensors(config, tmp_path):
    """Both train the same parameters, and the result is scored on either."""
    experiment = build_experiment(config)
    first, second = itertools.islice(experiment.make_batches(0), 2)
    assert first["main"]["image"].shape == (2, 32, 32, 3)
    assert second["narrow"]["image"].shape == (2, 32, 32, 4)
    scores = experiment.evaluate(experiment.trainable)
    assert scores.keys() == {"miou", "overall_accuracy", "miou_narrow", "mean_miou"}
    assert scores["mean_miou"] == pytest.approx((scores["miou"] + scores["miou_narrow"]) / 2)
    train(config.replaced({"train.head_start": "probe", "train.selection": "mean_miou"}), tmp_path)
    wide, narrow = (leaves(load_trained(tmp_path, stream)) for stream in config.every_stream.values())
    assert narrow["backbone", "visual", "patch_kernel"].shape[2] == 4
    own = {("backbone", "visual", "patch_kernel"), ("backbone", "visual", "patch_bias"),
           ("pixel_mean",), ("pixel_std",)}  # fmt: skip
    for path in wide.keys() - own:
        np.testing.assert_array_equal(wide[path], narrow[path])
    assert 0 <= evaluate(tmp_path, config.every_stream["narrow"])["miou"] <= 1


def test_an_encoder_with_fixed_bands_is_rejected(config):
    with pytest.raises(UserError, match=r"config\.streams\.narrow: .*only dofa"):
        build_experiment(config.replaced({"model.visual.kind": "dinov3"}))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weight": 0.0}, r"config\.streams\.x\.weight = 0\.0"),
        (3, r"config\.streams\.x = 3: must be a section"),
    ],
)
def test_bad_streams(config, section, message):
    with pytest.raises(UserError, match=message):
        config.replaced({"streams": {"x": section}})
