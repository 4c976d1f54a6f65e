"""Test-time augmentation is the mean over its parts, each computed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.stored import read_run_config
from tests.inference.test_model import folder, image_of  # noqa: F401 (a fixture)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIDES = {0.5: 16, 0.75: 24, 1.0: 32, 1.25: 40, 1.5: 48, 1.75: 56}  # multiples of a patch of 4 pixels


@pytest.fixture
def load(folder):  # noqa: F811
    run = folder / "runs" / "quickstart"
    return lambda tta: spectralmoe_jax.load(run, read_run_config(run, [f"--config.evaluate.tta={tta}"]))


def mirrored(score, image, vertical, horizontal):
    step = (-1 if vertical else 1, -1 if horizontal else 1)
    return score(image[:: step[0], :: step[1]])[:: step[0], :: step[1]]


def test_flips(load):
    plain, image = load("none"), image_of(32, 32)
    parts = [mirrored(plain.scores, image, v, h) for v in (False, True) for h in (False, True)]
    np.testing.assert_allclose(load("flips").scores(image), np.mean(parts, axis=0), atol=1e-6)


def test_all_symmetries_of_a_square(load):
    """With transposed copies: flips of the image and of its transpose are the eight symmetries."""
    plain, image = load("none"), image_of(32, 32)

    def transposed(tile):
        return plain.scores(tile.swapaxes(0, 1)).swapaxes(0, 1)

    parts = [
        mirrored(score, image, v, h)
        for score in (plain.scores, transposed)
        for v in (False, True)
        for h in (False, True)
    ]
    found = load("d4").scores(image)
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-6)
    assert np.abs(found - plain.scores(image)).max() > 1e-4


def resized(tile, side):
    return tile if tile.shape[0] == side else np.asarray(_resize(tile, side))


def _resize(tile, side):
    """By torch, which bilinear resizing follows."""
    torch = pytest.importorskip("torch", reason="compared with torch's resizing")
    channels_first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(tile, -1, 0)))[None]
    found = torch.nn.functional.interpolate(channels_first, (side, side), mode="bilinear")
    return np.moveaxis(found[0].numpy(), 0, -1)


def sizes(model, image):
    """Scores of the resized window, resized back, for every scale."""
    for side in SIDES.values():
        tile = jnp.asarray(resized(image, side))[None]
        yield resized(np.asarray(jax.jit(model.segmenter.scores)(tile))[0], 32)


def softmax(scores):
    return np.asarray(jax.nn.softmax(scores, axis=-1))


@pytest.mark.slow
def test_sizes(load):
    plain, image = load("none"), image_of(32, 32)
    wanted = np.mean(list(sizes(plain, image)), axis=0)
    np.testing.assert_allclose(load("multiscale").scores(image), wanted, atol=1e-5)


@pytest.mark.slow
def test_the_released_codes_way(load):
    plain, image = load("none"), image_of(32, 32)
    straight = [softmax(scores) for scores in sizes(plain, image)]
    mirror = [softmax(scores)[:, ::-1] for scores in sizes(plain, image[:, ::-1])]
    found = load("released").scores(image)
    np.testing.assert_allclose(found, np.mean(straight + mirror, axis=0), atol=1e-5)


def test_from_the_command_line(load, folder, tmp_path):  # noqa: F811
    """Evaluation and maps use it alike."""
    run = folder / "runs" / "quickstart"
    scene = run / "sensor_b" / "images" / "scene_000.tif"
    model = load("d4")
    model.map(scene, tmp_path / "wanted.tif")
    command = ["predict", "--checkpoint", str(run), "--input", str(scene), "--tta", "d4"]
    assert main([*command, "--output", str(tmp_path / "found.tif")]) == 0
    assert (tmp_path / "found.tif").read_bytes() == (tmp_path / "wanted.tif").read_bytes()
    with_turns = spectralmoe_jax.evaluate(run, model.config)
    assert with_turns != spectralmoe_jax.evaluate(run)
    report = tmp_path / "report.json"
    assert main(["evaluate", "--workdir", str(run), "--tta", "d4", "--output", str(report)]) == 0
    assert f'"miou": {with_turns["miou"]}' in report.read_text()
