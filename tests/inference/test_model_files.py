"""Scoring and mapping with weight files alone: the authors' released ones, and ours."""

import json

import numpy as np
import pytest
import rasterio
from safetensors.numpy import load_file, save_file
from sklearn.metrics import confusion_matrix

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import read_images
from tests.released_run import golden_files, released_config, write_config_file, write_scenes


class Released:
    """A golden segmenter as files of a user."""

    def __init__(self, name, goldens, folder):
        self.weights, numbers = golden_files(name, goldens)
        with np.load(numbers) as archive:
            self.golden = {key: archive[key] for key in ("image", "label", "seg_logits")}
        tensors = load_file(self.weights)
        mean, std = (tensors[f"data_preprocessor.{name}"].reshape(4, 1, 1) for name in ("mean", "std"))
        self.golden["image"] = self.golden["image"] * std + mean  # the golden is normalised, files are not
        self.images = write_scenes(folder / "data" / "scenes", self.golden)
        self.config = released_config(name, goldens, folder / "data")
        self.file = write_config_file(folder / "released.py", self.config)

    @property
    def wanted(self):
        """Class maps of the authors' code."""
        return self.golden["seg_logits"].argmax(axis=1)


@pytest.fixture(scope="module", params=["dinov3", pytest.param("dofa", marks=pytest.mark.slow)])
def released(request, goldens, tmp_path_factory):
    return Released(request.param, goldens, tmp_path_factory.mktemp("released"))


def test_scores_of_a_released_file(released):
    model = spectralmoe_jax.load(released.weights, released.config)
    scores = model.scores(np.moveaxis(released.golden["image"], 1, -1))
    wanted = np.moveaxis(released.golden["seg_logits"], 1, -1)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)


def evaluated(model, tmp_path, *options):
    report, images = tmp_path / "report.json", tmp_path / "images.npz"
    command = ["evaluate", "--checkpoint", str(model), "--output", str(report), "--images", str(images)]
    assert main([*command, *options]) == 0
    return json.loads(report.read_text()), images


def test_a_released_file_is_evaluated(released, tmp_path):
    _, images = evaluated(released.weights, tmp_path, "--config", str(released.file))
    truth = released.golden["label"]
    known = (truth >= 0) & (truth < 5)
    wanted = confusion_matrix(truth[known], released.wanted[known], labels=range(5))
    found = sum(image.counts for image in read_images(images))
    np.testing.assert_array_equal(found, wanted)


def test_a_released_file_is_mapped(released, tmp_path):
    command = ["predict", "--checkpoint", str(released.weights), "--config", str(released.file)]
    output = tmp_path / "map.tif"
    assert main([*command, "--input", str(released.images[0]), "--output", str(output)]) == 0
    with rasterio.open(output) as found:
        np.testing.assert_array_equal(found.read(1), released.wanted[0])


def test_there_and_back_from_the_command_line(released, tmp_path, monkeypatch):
    """The authors' layout to ours and back, bit by bit; ours carries its configuration in between."""
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(released.weights), str(ours), "--config", str(released.file)]) == 0
    assert main(["convert", str(ours), str(back), "--to", "released"]) == 0
    found, wanted = load_file(back), load_file(released.weights)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].tobytes() == tensor.tobytes(), name
    # both files are enough to map with
    for file in (ours, back):
        output = tmp_path / f"{file.stem}.tif"
        command = ["predict", "--checkpoint", str(file), "--input", str(released.images[1])]
        assert main([*command, "--output", str(output)]) == 0
        with rasterio.open(output) as written:
            np.testing.assert_array_equal(written.read(1), released.wanted[1])


@pytest.mark.slow
def test_a_backbone_and_the_checkpoint_trained_on_it(released, tmp_path):
    """The authors' pair of files."""
    tensors = load_file(released.weights)
    trained = {
        n: x for n, x in tensors.items() if n.startswith(("decode_head.", "backbone.depthmoe.", "data_"))
    }
    backbone = {name.removeprefix("backbone."): x for name, x in tensors.items() if name not in trained}
    save_file(trained, tmp_path / "checkpoint.safetensors")
    save_file(backbone, tmp_path / "backbone.safetensors")
    pair = f"{tmp_path}/backbone.safetensors,{tmp_path}/checkpoint.safetensors"
    report, _ = evaluated(pair, tmp_path, "--config", str(released.file))
    alone, _ = evaluated(released.weights, tmp_path, "--config", str(released.file))
    assert report == alone
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: holds no depth and no visual: give files"):
        spectralmoe_jax.load(tmp_path / "checkpoint.safetensors", released.config)


def test_a_file_without_a_configuration(released, capsys):
    command = ["predict", "--checkpoint", str(released.weights), "--input", "x.tif", "--output", "y.tif"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "carries no configuration" in line
    assert "--config FILE" in line
