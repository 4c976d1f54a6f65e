"""`config.model.weights_head = "new"`: a trained segmenter for another set of classes, or of bands."""

import logging

import numpy as np
import pytest

from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.parameters import leaves
from tests.weights.test_released import tiny, written  # noqa: F401 (a fixture)

OF_CLASSES = {("head", "cls_embed", "kernel"), ("head", "cls_embed", "bias")}
NAMES = ("one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="module", params=["released", pytest.param("native", marks=pytest.mark.slow)])
def file(request, written, tmp_path_factory):  # noqa: F811
    folder, _ = written
    if request.param == "released":
        return folder / "whole.safetensors"
    target = tmp_path_factory.mktemp("native") / "whole.safetensors"
    convert(str(folder / "whole.safetensors"), str(target))
    return target


def other_classes(file, **more):
    config = tiny(weights=str(file), **more)
    return config.replaced({"classes.names": NAMES, "classes.palette": None, "model.weights_head": "new"})


def test_all_but_the_classes_is_kept(file, written, caplog):  # noqa: F811
    _, wanted = written
    config = other_classes(file, pixel_mean=(1.0, 2.0, 3.0, 4.0), pixel_std=(1.0, 2.0, 3.0, 4.0))
    with caplog.at_level(logging.INFO):
        found = leaves(initial_segmenter(config))
    for path, leaf in found.items():
        if path in OF_CLASSES:
            assert leaf.shape[-1] == len(NAMES) + 1
        elif path[0] in ("pixel_mean", "pixel_std"):
            np.testing.assert_array_equal(leaf, (1, 2, 3, 4))
        else:
            np.testing.assert_array_equal(leaf, wanted[path], err_msg="/".join(path))
    assert "fresh are 4 leaves: head/cls_embed/bias, head/cls_embed/kernel, pixel_mean, pix" in caplog.text
    assert f"kept are {len(found) - 4} leaves: " in caplog.text


def test_the_new_head_is_that_of_a_new_model(file):
    """Random, by the seed of the run."""
    config = other_classes(file)
    alone = config.replaced({"model.weights": None})
    found, wanted = leaves(initial_segmenter(config)), leaves(initial_segmenter(alone))
    for path in OF_CLASSES:
        np.testing.assert_array_equal(found[path], wanted[path])


def test_other_bands(file, written):  # noqa: F811
    """The kernels of the bands that the file has are kept; the statistics are the configuration's."""
    _, wanted = written
    four = other_classes(file)
    config = four.replaced({
        "bands": (*four.bands, "swir16"), "model.pixel_mean": (1.0, 2.0, 3.0, 4.0, 5.0),
        "model.pixel_std": (6.0, 7.0, 8.0, 9.0, 10.0),
    })  # fmt: skip
    found, kernel = leaves(initial_segmenter(config)), ("backbone", "visual", "patch_kernel")
    np.testing.assert_array_equal(found[kernel][:, :, :4], wanted[kernel])
    assert found[kernel].shape[2] == 5
    np.testing.assert_array_equal(found["pixel_mean",], (1, 2, 3, 4, 5))
    np.testing.assert_array_equal(found["pixel_std",], (6, 7, 8, 9, 10))


def test_the_same_head_is_strict(file):
    with pytest.raises(UserError, match=r"wrong shape .*cls_embed"):
        initial_segmenter(other_classes(file).replaced({"model.weights_head": "same"}))
