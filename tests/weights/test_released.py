"""The authors' layout in both directions, and the files that a segmenter's weights come from."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.conversion.export import released_tensors
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter, load_trained
from spectralmoe_jax.models import build
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves
from spectralmoe_jax.parameters import leaves, split
from spectralmoe_jax.parity.segmenter_goldens import golden_segmenter_config
from spectralmoe_jax.weights.reading import WeightFile, open_weight_file
from spectralmoe_jax.weights.released import PARTS, stream_segmenter

SIZES = {"width": 16, "layers": 4, "heads": 2, "patch_size": 8}


def golden(name, goldens):
    """(settings, safetensors file) of a golden segmenter; the large file lies beside the project alone."""
    shared = goldens.parent.parent.parent / "shared" / "reference" / "goldens"
    file = Path("released_tiny") / f"{name}_laplace_k1.safetensors"
    found = next((root / file for root in (goldens, shared) if (root / file).is_file()), None)
    if found is None:
        pytest.skip(f"needs {file} of ../shared/reference/goldens, which this machine does not have")
    meta = json.loads((goldens / file).with_suffix(".json").read_text())
    config, _ = golden_segmenter_config(meta, (8, 8, 8, 8))  # the sizes of feature maps change no weight
    if name == "dofa":
        visual = EncoderConfig(
            "dofa", width=64, layers=4, heads=4, in_channels=4, wavelengths=tuple(meta["wavelengths_um"]),
            norm_eps=meta["norm_eps"], table_size=8,
        )  # fmt: skip
        config = dataclasses.replace(config, visual=visual)
    return config, found


@pytest.mark.parametrize("name", ["dinov3", "dofa"])
def test_released_to_ours_to_released(name, goldens):
    config, file = golden(name, goldens)
    shapes = {path: leaf.shape for path, leaf in leaves(abstract_segmenter(config)).items()}
    ours = dict(stream_segmenter(open_weight_file(file), config, shapes, list(PARTS)))
    assert {path: leaf.shape for path, leaf in ours.items()} == shapes
    back = dict(released_tensors(config, ours.items()))
    wanted = load_file(file)
    assert back.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (back[key].dtype, back[key].shape) == (tensor.dtype, tensor.shape), key
        assert back[key].tobytes() == tensor.tobytes(), key


def random_values(config):
    """Random leaves of a segmenter by path, except masks, what they hide, and what dofa generates."""
    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in leaves(abstract_segmenter(config)).items()}
    values = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    made = [path for path in shapes if path[-1] == "bias_mask"]
    if config.visual.kind == "dofa":
        made += [path for path in shapes if path[:2] == ("backbone", "visual")]
    values |= {path: np.asarray(leaf) for path, leaf in random_leaves(config, 0, made).items()}
    for *parent, name in made:
        if name == "bias_mask":
            values[*parent, "qkv", "bias"] *= values[*parent, "bias_mask"]
    return values


@pytest.mark.parametrize("kind", ["dinov3", "dinov2", "dofa", "eva02"])
def test_ours_to_released_to_ours(kind, goldens):
    """Every family that the released code has a name for, random weights."""
    config, _ = golden("dinov3", goldens)
    visual = EncoderConfig(
        kind, width=64, layers=4, heads=4, in_channels=4, table_size=8,
        wavelengths=(0.83, 0.665, 0.56, 0.49) if kind == "dofa" else (),
        ffn="swiglu" if kind == "eva02" else "mlp",
    )  # fmt: skip
    config = dataclasses.replace(config, visual=visual)
    values = random_values(config)
    tensors = dict(released_tensors(config, values.items()))
    weights = WeightFile("tensors", [], {name: x.shape for name, x in tensors.items()}, tensors.__getitem__)
    shapes = {path: leaf.shape for path, leaf in values.items()}
    back = dict(stream_segmenter(weights, config, shapes, list(PARTS)))
    assert back.keys() == values.keys()
    made_anew = {("backbone", "visual", name) for name in ("patch_kernel", "patch_bias") if kind == "dofa"}
    for path, leaf in values.items():
        if path in made_anew:
            np.testing.assert_allclose(back[path], leaf, atol=1e-7)
        else:
            np.testing.assert_array_equal(back[path], leaf, err_msg="/".join(path))


EVA02_BLOCK = (
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.q_proj.weight", "attn.k_proj.weight",
    "attn.v_proj.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias",
    "attn.rope.freqs_cos", "attn.rope.freqs_sin", "mlp.w1.weight", "mlp.w1.bias", "mlp.w2.weight",
    "mlp.w2.bias", "mlp.ffn_ln.weight", "mlp.ffn_ln.bias", "mlp.w3.weight", "mlp.w3.bias",
)  # fmt: skip
EVA02_REST = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "rope.freqs_cos",
              "rope.freqs_sin")  # fmt: skip


def test_names_of_released_eva02(goldens):
    """The parameters and buffers of the released class EVA2 with subln, qkv_bias, naiveswiglu and rope."""
    config, _ = golden("dinov3", goldens)
    visual = EncoderConfig(
        "eva02", width=64, layers=4, heads=4, in_channels=4, table_size=6, ffn="swiglu", mlp_width=80
    )
    config = dataclasses.replace(config, visual=visual)
    values = random_values(config)
    tensors = dict(released_tensors(config, values.items()))
    own = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
        and not name.startswith(("backbone.depth_anything.", "backbone.depthmoe."))
    }
    assert own.keys() == {*EVA02_REST, *(f"blocks.{i}.{name}" for i in range(4) for name in EVA02_BLOCK)}
    assert own["blocks.0.mlp.w1.weight"].shape == (80, 64)
    gate = values["backbone", "visual", "blocks", "mlp", "first", "kernel"][2][:, :80]
    np.testing.assert_array_equal(own["blocks.2.mlp.w1.weight"], gate.T)
    # six rows and columns stretched to sixteen, 10000^(-2i/8) for a quarter of the head each, pairs alike
    angles = np.arange(6) / 6 * 16 * (1 / 10000 ** (np.arange(0, 8, 2) / 8))[:, None]  # (4, 6)
    halves = np.repeat(angles.T, 2, axis=1)  # (6, 8)
    both = np.concatenate([np.repeat(halves, 6, axis=0), np.tile(halves, (6, 1))], axis=1)
    for place in ("rope.", "blocks.3.attn.rope."):
        np.testing.assert_allclose(own[f"{place}freqs_cos"], np.cos(both), atol=2e-6)
        np.testing.assert_allclose(own[f"{place}freqs_sin"], np.sin(both), atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("clip", "has a learned pyramid"), ("sam", "adapts only SAM's layers with global attention")],
)
def test_encoders_that_the_released_code_uses_differently(kind, reason, goldens):
    config, _ = golden("dinov3", goldens)
    visual = EncoderConfig(kind, width=64, layers=4, heads=4, in_channels=4, table_size=8, global_every=2)
    with pytest.raises(UserError, match=rf"kind = '{kind}' has no released layout: .*{reason}"):
        next(released_tensors(dataclasses.replace(config, visual=visual), iter(())))


def tiny(**changes) -> RunConfig:
    """The cross-sensor configuration, tiny: DINOv3 with DINOv2 for depth; `__` stands for a dot in a key."""
    head = {"num_queries": 6, "width": 16, "encoder_layers": 1, "decoder_layers": 3, "num_heads": 2,
            "encoder_ffn": 16, "decoder_ffn": 16, "group_norm_groups": 4}  # fmt: skip
    sections = {
        "visual": SIZES,
        "depth": {**SIZES, "table_size": 4},
        "adapter": {"num_tokens": 6, "rank": 2, "query_dim": 16, "num_experts": 2},
        "head": head,
    }
    values = {f"{section}.{key}": value for section, own in sections.items() for key, value in own.items()}
    values |= {"out_layers": (0, 1, 2, 3)} | {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config("configs/fbp_cross_sensor.py")
    return config.replaced({f"model.{key}": value for key, value in values.items()})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tiny segmenter, whole and in the parts that the authors publish."""
    folder = tmp_path_factory.mktemp("released")
    settings, rng = build.segmenter_config(tiny()), np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in leaves(abstract_segmenter(settings)).items()}
    values = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    for name in ("pixel_mean", "pixel_std"):  # not in every file: those of the configuration
        values[name,] = np.asarray(getattr(settings, name), np.float32)
    mask = values["backbone", "visual", "blocks", "attention", "bias_mask"]
    mask[:] = np.repeat([1, 0, 1], SIZES["width"])  # defined, and checked
    tensors = dict(released_tensors(settings, values.items()))
    trained = {k: v for k, v in tensors.items() if k.startswith(("backbone.depthmoe.", "decode_head."))}
    backbone = {
        k.removeprefix("backbone."): v
        for k, v in tensors.items()
        if k.startswith("backbone.") and k not in trained
    }
    save_file(tensors, folder / "whole.safetensors")
    save_file(trained, folder / "trained.safetensors")
    # what the authors' merging script takes over from promptda_vitl.ckpt beside the encoder
    unused = {
        "depth_anything._mean": np.zeros((1, 3, 1, 1), "f4"),
        "depth_anything._std": np.ones((1, 3, 1, 1), "f4"),
        "depth_anything.depth_head.projects.0.weight": np.zeros((8, 16, 1, 1), "f4"),
    }
    save_file(backbone | unused, folder / "backbone.safetensors")
    save_file(unused, folder / "unused.safetensors")
    depth = "depth_anything.pretrained."
    save_file({k: v for k, v in backbone.items() if not k.startswith(depth)}, folder / "visual.safetensors")
    depth_file = {k.removeprefix("depth_anything."): v for k, v in backbone.items() if k.startswith(depth)}
    save_file(depth_file | {"depth_head.scratch.weight": np.zeros(2)}, folder / "depth.safetensors")
    return folder, values


def different(config, wanted):
    found = leaves(initial_segmenter(config))
    assert found.keys() == wanted.keys()
    return [path for path in wanted if not np.array_equal(found[path], wanted[path])]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "whole"},
        {"weights": "backbone,trained"},
        {"weights": "trained", "visual__weights": "visual", "depth__weights": "depth"},
        {"weights": "trained", "visual__weights": "backbone", "depth__weights": "backbone"},
    ],
)
def test_whole_or_in_parts(changes, written):
    folder, wanted = written
    files = {
        key: ",".join(f"{folder}/{name}.safetensors" for name in value.split(","))
        for key, value in changes.items()
    }
    config = tiny(**files).replaced({"seed": 1})  # nothing that was read comes from the seed
    assert different(config, wanted) == []


@pytest.mark.parametrize("files", ["backbone", "whole", "backbone,trained"])
def test_without_depth(files, written, caplog):
    """The depth encoder of a file is left out of a model that has none, and the log says so."""
    folder, wanted = written
    weights = ",".join(f"{folder}/{name}.safetensors" for name in files.split(","))
    config = tiny(weights=weights, adapter__use_depth=False, adapter__fusion="none")
    with caplog.at_level(logging.INFO):
        found = leaves(initial_segmenter(config))
    assert "depth encoder and depth router are skipped" in caplog.text
    assert not any(path[:2] == ("backbone", "depth") for path in found)
    visual = [path for path in found if path[:2] == ("backbone", "visual")]
    assert all(np.array_equal(found[path], wanted[path]) for path in visual)
    if files != "backbone":
        router = wanted["backbone", "adapter", "w_gate"][:, :1]
        np.testing.assert_array_equal(found["backbone", "adapter", "w_gate"], router)


def test_encoders_alone_leave_the_rest_random(written, caplog):
    folder, wanted = written
    config = tiny(visual__weights=f"{folder}/visual.safetensors")
    with caplog.at_level(logging.WARNING):
        changed = different(config, wanted)
    assert "config.model.depth is frozen and has random weights" in caplog.text
    assert {path[:2] for path in changed} >= {("backbone", "adapter"), ("backbone", "depth")}
    assert ("backbone", "visual") not in {path[:2] for path in changed}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "trained"}, "does not hold the visual encoder, which is frozen: give .*BACKBONE"),
        ({"weights": "visual"}, "holds no part of a segmenter; give .*config.model.visual.weights"),
        ({"weights": "whole", "depth__weights": "depth"}, "holds the depth part, which config"),
        ({"weights": "whole", "visual__heads": 4}, r"holds heads 2, config\.model\.visual\.heads is 4"),
        ({"depth__weights": "visual"}, r"holds kind dinov3, config\.model\.depth\.kind is dinov2"),
    ],
)  # fmt: skip
def test_incompatible_parts(changes, message, written):
    folder, _ = written
    changes = {k: f"{folder}/{v}.safetensors" if k.endswith("weights") else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message) as error:
        initial_segmenter(tiny(**changes))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def workdir(written, tmp_path_factory):
    """A run's folder, as training leaves it, of parameters that the seed alone does not give."""
    folder, _ = written
    config = tiny(weights=f"{folder}/backbone.safetensors,{folder}/trained.safetensors")
    return run_of(config, tmp_path_factory.mktemp("run")), config


def run_of(config, place):
    """A run's folder with a checkpoint of step 3."""
    place.mkdir(exist_ok=True)
    trainable, _ = split(initial_segmenter(config))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), trainable)
    with CheckpointStore(place, config) as store:
        store.save(3, moved, {"count": np.zeros((), np.int32)}, {"miou": 0.5})
    save_config(config, place / "config.json")
    return place


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("released", "x.pth"),
        pytest.param("released", "x.safetensors", marks=pytest.mark.slow),
        ("safetensors", "native.safetensors"),
    ],
)
def test_ours_to_a_file_to_ours(to, name, workdir, tmp_path):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="needs the extra `torch`")
    place, config = workdir
    wanted = leaves(load_trained(place, config))
    convert(str(place), str(tmp_path / name), to=to)
    back = leaves(initial_segmenter(tiny(weights=str(tmp_path / name))))
    for path, leaf in wanted.items():
        assert np.asarray(back[path]).tobytes() == np.asarray(leaf).tobytes(), path
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_released_file_of_a_run_is_whole(name, workdir, written, tmp_path):
    """Every name of the authors' model, with the depth model's head and statistics as the backbone had."""
    place, _ = workdir
    folder, _ = written
    convert(str(place), str(tmp_path / name), to="released")
    weights = open_weight_file(tmp_path / name)
    unused = load_file(folder / "unused.safetensors")
    pixels = {"data_preprocessor.mean", "data_preprocessor.std"}
    names = load_file(folder / "whole.safetensors").keys() | {f"backbone.{name}" for name in unused}
    assert set(weights) == names | pixels
    for key, value in unused.items():
        assert weights[f"backbone.{key}"].tobytes() == value.tobytes(), key


def test_released_file_of_a_depth_encoder_without_its_head(written, tmp_path, caplog):
    folder, _ = written
    place = run_of(tiny(weights=f"{folder}/whole.safetensors"), tmp_path / "run")
    with caplog.at_level(logging.INFO):
        convert(str(place), str(tmp_path / "x.safetensors"), to="released")
    assert "came without its depth head: load the file with strict=False" in caplog.text
    found = load_file(tmp_path / "x.safetensors")
    for key, value in (("_mean", [0.485, 0.456, 0.406]), ("_std", [0.229, 0.224, 0.225])):
        wanted = np.float32(value).reshape(1, 3, 1, 1)
        np.testing.assert_array_equal(found[f"backbone.depth_anything.{key}"], wanted)


@pytest.mark.parametrize(("to", "name"), [("safetensors", "x.safetensors"), ("released", "x.safetensors"),
                                          ("released", "x.pth"), ("hf", "x")])  # fmt: skip
def test_provenance_of_a_run(to, name, workdir, written, tmp_path):
    place, _ = workdir
    folder, _ = written
    convert(str(place), str(tmp_path / name), to=to)
    if name.endswith(".pth"):
        torch = pytest.importorskip("torch", reason="needs the extra `torch`")
        record = json.loads(torch.load(tmp_path / name, weights_only=True)["meta"]["spectralmoe"])
    else:
        record = json.loads(open_weight_file(tmp_path / name).metadata["spectralmoe"])
    assert record["source"] == str(place)
    assert record["checkpoint"]["step"] == 3
    assert len(record["checkpoint"]["sha256"]) == 64
    digest = hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
    for encoder, licence in (("visual", "DINOv3 License"), ("depth", "Apache-2.0")):
        part = record["encoders"][encoder]
        assert part["sha256"] == {"backbone.safetensors": digest}
        assert part["source"] == f"{folder}/backbone.safetensors"
        assert part["licence"].startswith(licence)
        assert part["preset"] is None  # a tiny one is none of those published
        assert part["encoder"]["width"] == 16


def test_run_to_hugging_face(workdir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
    place, config = workdir
    convert(str(place), str(tmp_path / "hf"), to="hf")
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    kernel = model.state_dict()["embeddings.patch_embeddings.weight"].numpy()
    ours = leaves(load_trained(place, config))["backbone", "visual", "patch_kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(ours).transpose(3, 2, 0, 1))


def test_bad_requests_for_a_run(workdir, tmp_path):
    place, _ = workdir
    with pytest.raises(UserError, match=r"has to end in \.pth or \.safetensors"):
        convert(str(place), str(tmp_path / "x.npz"), to="released")
    with pytest.raises(UserError, match="is a run's folder, for which --as has no meaning: leave it out"):
        convert(str(place), str(tmp_path / "x.pth"), format="hf_clip")
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert(str(place), str(tmp_path / "there.pth"), to="released")
    assert (tmp_path / "there.pth").read_text() == "mine"
