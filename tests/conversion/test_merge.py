"""`spectralmoe convert` merges parts of a segmenter into one file for `config.model.weights`."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.reading import open_weight_file
from tests.weights.test_released import different, tiny, written  # noqa: F401 (a fixture)


def files(folder, names):
    return ",".join(f"{folder}/{name}.safetensors" for name in names.split(","))


@pytest.mark.parametrize(
    "names", ["whole", "backbone,trained", "trained,visual,depth", "trained,depth,visual"]
)
def test_all_parts_in_one_file(names, written, tmp_path, capsys):  # noqa: F811
    folder, wanted = written
    target = tmp_path / "native.safetensors"
    assert main(["convert", files(folder, names), str(target)]) == 0
    assert "adapter, depth, head" in capsys.readouterr().out
    config = tiny(weights=str(target)).replaced({"seed": 1})  # nothing that was read comes from the seed
    assert different(config, wanted) == []
    assert [file.name for file in tmp_path.iterdir()] == ["native.safetensors"]


def test_separate_parts(written, tmp_path):  # noqa: F811
    """The merged backbone and the training checkpoint, each by itself; then both again as one."""
    folder, wanted = written
    for name in ("backbone", "trained"):
        convert(f"{folder}/{name}.safetensors", str(tmp_path / f"{name}.safetensors"))
    assert different(tiny(weights=files(tmp_path, "backbone,trained")), wanted) == []
    convert(files(tmp_path, "backbone,trained"), str(tmp_path / "both.safetensors"))
    assert different(tiny(weights=files(tmp_path, "both")), wanted) == []
    record = json.loads(open_weight_file(tmp_path / "both.safetensors").metadata["spectralmoe"])
    assert record["encoders"]["depth"]["encoder"]["layers"] == 4
    earlier = record["encoders"]["depth"]["earlier"]
    assert earlier["source"] == f"{folder}/backbone.safetensors"
    assert earlier["licence"] == record["encoders"]["depth"]["licence"]
    assert [file["source"] for file in record["files"]] == files(tmp_path, "backbone,trained").split(",")


def test_a_converted_encoder_keeps_its_provenance(written, tmp_path):  # noqa: F811
    folder, wanted = written
    for name in ("visual", "depth"):
        convert(f"{folder}/{name}.safetensors", str(tmp_path / f"{name}.safetensors"))
    convert(
        f"{files(tmp_path, 'visual,depth')},{folder}/trained.safetensors", str(tmp_path / "all.safetensors")
    )
    assert different(tiny(weights=files(tmp_path, "all")), wanted) == []


def test_fitted_to_a_configuration(written, tmp_path, caplog, monkeypatch):  # noqa: F811
    """With --config tables and kernels are resampled once, as reading the files into it would."""
    folder, _ = written
    config = tiny(weights=files(folder, "backbone,trained"), depth__table_size=6)
    wanted = leaves(initial_segmenter(config))
    monkeypatch.setattr("spectralmoe_jax.cli.models.load_config", lambda *_: config)
    with caplog.at_level(logging.INFO):
        target = str(tmp_path / "x.safetensors")
        assert main(["convert", files(folder, "backbone,trained"), target, "--config", "x.py"]) == 0
    assert "position_table (17, 16) adapted to (37, 16)" in caplog.text
    found = load_file(target)
    # pixel statistics are the configuration's where no file has them
    wanted = {"/".join(path): leaf for path, leaf in wanted.items() if not path[0].startswith("pixel_")}
    beside = load_file(folder / "unused.safetensors")  # the depth model's head, under its released names
    assert found.keys() == wanted.keys() | {f"backbone.{name}" for name in beside}
    assert all(np.array_equal(found[name], leaf) for name, leaf in wanted.items())


def edited(folder, name, tmp_path, edit):
    tensors = load_file(folder / f"{name}.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "edited.safetensors")
    return str(tmp_path / "edited.safetensors")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("trained", lambda t: t.pop("backbone.depthmoe.experts_b.3.1"), r"missing \(1\): .*experts_b\.3\.1"),
        ("trained", lambda t: t.pop("decode_head.query_feat.weight"), r"missing \(1\): .*query_feat\.weight"),
        ("trained", lambda t: t.update({"decode_head.x": np.zeros(1)}), r"unexpected \(1\): decode_head\.x"),
        ("trained", lambda t: t.update({"backbone.depthmoe.w_gate.2.0": np.zeros((3, 2))}), "wrong shape"),
        ("whole", lambda t: t.update({"ema.weight": np.zeros(1)}), r"ema\.weight: not part"),
        ("backbone", lambda t: t.pop("blocks.2.norm1.bias"), r"missing \(1\): blocks\.2\.norm1\.bias"),
        (
            "backbone",
            lambda t: t.update({"depth_anything.x": np.zeros(1)}),
            r"unexpected .*depth_anything\.x",
        ),
    ],
)
def test_strict_without_a_configuration(name, edit, message, written, tmp_path):  # noqa: F811
    folder, _ = written
    with pytest.raises(UserError, match=message) as error:
        convert(edited(folder, name, tmp_path, edit), str(tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("whole,depth", {}, "holds the depth part, which an earlier file holds too"),
        ("whole", {"to": "released"}, "carries no configuration, .* give that of its training as --config"),
        ("whole", {"to": "published"}, "--to published is for an encoder's file"),
        ("whole", {"format": "meta_dinov3"}, "becomes a segmenter's file, for which --as has no meaning"),
        ("visual", {"config": tiny()}, "is an encoder's file, for which --config has no meaning"),
    ],
)
def test_rejected_inputs(names, options, message, written, tmp_path):  # noqa: F811
    folder, _ = written
    with pytest.raises(UserError, match=message):
        convert(files(folder, names), str(tmp_path / "x.safetensors"), **options)
    assert list(tmp_path.iterdir()) == []
