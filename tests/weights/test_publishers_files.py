"""Files in the publishers' own formats: the weights of transformers' models under the publishers' names."""

import logging

import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.encoder_file import fill_encoder
from spectralmoe_jax.weights.format_tables import DOFA, encoder_rules
from spectralmoe_jax.weights.formats import file_fields, recognise
from spectralmoe_jax.weights.name_rules import write_tensors
from spectralmoe_jax.weights.reading import open_weight_file
from tests.weights.tiny_encoders import (
    CONFIGS,
    OURS,
    SIZES,
    TABLE,
    filled,
    image,
    layers_of,
    published,
    randomised,
    worst,
)

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

COMMON = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.o_proj": "attn.proj",
    "layernorm.": "norm.",
}
DINOV2 = COMMON | {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.register_tokens": "register_tokens",
    "encoder.layer.": "blocks.",
    "mlp.down_proj": "mlp.w3",
}
DINOV3 = COMMON | {
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.register_tokens": "storage_tokens",
    "model.layer.": "blocks.",
}


def meta_state(kind):
    """The state dict of a transformers model as Meta's code names it."""
    gated, new = CONFIGS[kind].ffn == "swiglu", kind.startswith("dinov3")
    table = dict(DINOV3 if new else DINOV2)
    if new and gated:
        table |= {"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}
    elif new:
        table |= {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    state = {}
    for name, value in published(kind).state_dict().items():
        for theirs, metas in table.items():
            name = name.replace(theirs, metas)
        state[name] = value
    for layer in range(CONFIGS[kind].layers):
        block = f"blocks.{layer}."
        for part in ("weight", "bias"):
            names = [f"{block}attention.{x}_proj.{part}" for x in "qkv"]
            parts = [state.pop(name, None) for name in names]
            parts[1] = torch.zeros_like(parts[0]) if parts[1] is None else parts[1]
            state[f"{block}attn.qkv.{part}"] = torch.cat(parts)
            if gated and not new:
                pair = [state.pop(f"{block}mlp.{x}_proj.{part}") for x in ("gate", "up")]
                state[f"{block}mlp.w12.{part}"] = torch.cat(pair)
        if new:
            mask = torch.ones(3, 24)
            mask[1] = 0
            state[f"{block}attn.qkv.bias_mask"] = mask.flatten()
    if new:
        state["rope_embed.periods"] = 100.0 ** (torch.arange(3) / 3)
        state["mask_token"] = state["mask_token"][0]
    return state


@pytest.fixture(scope="module")
def folder_leaves(tmp_path_factory):
    def get(kind):
        folder = tmp_path_factory.mktemp(kind)
        published(kind).save_pretrained(folder)
        return leaves(filled(CONFIGS[kind], folder))

    return get


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_registers", "dinov3", "dinov3_gated"])
def test_same_leaves_as_from_hugging_face(kind, folder_leaves, tmp_path):
    torch.save(meta_state(kind), tmp_path / "meta.pth")
    ours = leaves(filled(CONFIGS[kind], tmp_path / "meta.pth"))
    wanted = folder_leaves(kind)
    assert ours.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=1e-6, err_msg=str(path))
    found = file_fields(recognise(open_weight_file(tmp_path / "meta.pth")))
    assert all(getattr(CONFIGS[kind], key) == value for key, value in found.items())


# as Prompt-Depth-Anything's load_checkpoint takes them apart: it drops the first nine letters of every name
PROMPT_DEPTH = ("pipeline.depth_head.projects.0.weight", "pipeline.depth_head.scratch.output_conv1.bias",
                "pipeline._mean", "pipeline._std")  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "rest", "wrap", "name"),
    [
        ("pretrained.", ("depth_head.projects.0.weight",), (), "da.pth"),
        ("pipeline.pretrained.", PROMPT_DEPTH, ("state_dict",), "promptda_vitl.ckpt"),
        ("backbone.", ("dino_head.last_layer.weight",), ("teacher",), "teacher.pth"),
        ("module.", (), ("model",), "parallel.pt"),
    ],
)
def test_prefixes_of_training_checkpoints(prefix, rest, wrap, name, tmp_path):
    bare = meta_state("dinov2")
    state = {prefix + key: value for key, value in bare.items()}
    state |= {key: torch.zeros(3) for key in rest}
    for key in wrap:
        state = {key: state, "epoch": 3}
    torch.save(state, tmp_path / name)
    torch.save(bare, tmp_path / "bare.pth")
    ours, wanted = (leaves(filled(CONFIGS["dinov2"], tmp_path / file)) for file in (name, "bare.pth"))
    assert all(np.array_equal(ours[path], wanted[path]) for path in wanted)


def test_untied_norms_and_no_biases_of_7b(tmp_path):
    state = {name: value for name, value in meta_state("dinov3_gated").items() if ".qkv.bias" not in name}
    state |= {f"{norm}.{part}": torch.randn(24) for norm in ("cls_norm", "local_cls_norm")
              for part in ("weight", "bias")}  # fmt: skip
    torch.save(state, tmp_path / "7b.pth")
    config = EncoderConfig(
        **OURS, storage_tokens=4, ffn="swiglu", qkv_bias=False, untied_norms=("cls_norm", "local_cls_norm")
    )
    ours = leaves(filled(config, tmp_path / "7b.pth"))
    np.testing.assert_array_equal(ours["cls_norm", "scale"], state["cls_norm.weight"])
    assert ("blocks", "attention", "qkv", "bias") not in ours


def eva_state(config):
    """Random weights under timm's names."""
    generator = torch.Generator().manual_seed(0)
    wide, hidden = config.width, config.hidden
    square = (wide, wide)
    shapes = {"cls_token": (1, 1, wide), "pos_embed": (1, 17, wide), "patch_embed.proj.bias": (wide,)}
    shapes |= {"patch_embed.proj.weight": (wide, 3, 4, 4), "norm.weight": (wide,), "head.bias": (5,)}
    for layer in range(config.layers):
        own = {"norm1": (wide,), "norm2": (wide,), "mlp.norm": (hidden,), "attn.proj": (wide, wide),
               "mlp.fc1_g": (hidden, wide), "mlp.fc1_x": (hidden, wide), "mlp.fc2": (wide, hidden),
               "attn.q_proj": square, "attn.k_proj": square, "attn.v_proj": square}  # fmt: skip
        for name, shape in own.items():
            shapes[f"blocks.{layer}.{name}.weight"] = shape
            if name != "attn.k_proj":
                shapes[f"blocks.{layer}.{name}.bias"] = shape[:1]
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_eva02(tmp_path):
    config = EncoderConfig("eva02", **OURS, **TABLE, ffn="swiglu")
    state = eva_state(config)
    torch.save(state, tmp_path / "eva.pth")
    ours = leaves(filled(config, tmp_path / "eva.pth"))
    gate, value = (state[f"blocks.1.mlp.fc1_{x}.weight"].T for x in "gx")
    np.testing.assert_array_equal(ours["blocks", "mlp", "first", "kernel"][1], torch.cat([gate, value], 1))
    bias = [state["blocks.0.attn.q_proj.bias"], torch.zeros(24), state["blocks.0.attn.v_proj.bias"]]
    np.testing.assert_array_equal(ours["blocks", "attention", "qkv", "bias"][0], torch.cat(bias))
    np.testing.assert_array_equal(
        ours["blocks", "mlp", "norm", "scale"][1], state["blocks.1.mlp.norm.weight"]
    )


@pytest.mark.parametrize("wrap", ["module", "model"])
def test_original_eva02(wrap, tmp_path):
    """EVA-02's own names, as its .pt files hold them, give the leaves that timm's give."""
    config = EncoderConfig("eva02", **OURS, **TABLE, ffn="swiglu")
    timms = eva_state(config)
    torch.save(timms, tmp_path / "timm.pth")
    wanted = leaves(filled(config, tmp_path / "timm.pth"))
    state = {
        "mask_token": torch.zeros(1),
        "rope.freqs_cos": torch.zeros(16, 12),
        "lm_head.bias": torch.zeros(9),
    }
    for name, value in timms.items():
        for theirs, own in (("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"),
                            ("mlp.norm", "mlp.ffn_ln"), ("q_proj.bias", "q_bias"),
                            ("v_proj.bias", "v_bias")):  # fmt: skip
            name = name.replace(theirs, own)
        state[name] = value
    state["blocks.0.attn.rope.freqs_sin"] = torch.zeros(16, 12)
    torch.save({wrap: state, "epoch": 3}, tmp_path / "eva02.pt")
    found = recognise(open_weight_file(tmp_path / "eva02.pt"))
    assert found.format.name == "eva02"
    assert file_fields(found)["qkv_bias"]
    ours = leaves(filled(config, tmp_path / "eva02.pt"))
    assert all(np.array_equal(ours[path], leaf) for path, leaf in wanted.items())


def masks(value):
    state = meta_state("dinov3")
    return state | {name: value.clone() for name in state if name.endswith("bias_mask")}


def test_an_unfilled_bias_mask(tmp_path, caplog):
    """Meta's constructor leaves NaN in it, which must not reach the features."""
    torch.save(masks(torch.full((72,), torch.nan)), tmp_path / "nan.pth")
    with caplog.at_level(logging.INFO):
        found = leaves(filled(CONFIGS["dinov3"], tmp_path / "nan.pth"))
    assert "the mask of the key bias is not filled (NaN)" in caplog.text
    for row in found["blocks", "attention", "bias_mask"]:
        np.testing.assert_array_equal(row, [1] * 24 + [0] * 24 + [1] * 24)


def test_a_bias_mask_of_another_model(tmp_path):
    torch.save(masks(torch.ones(72)), tmp_path / "ones.pth")
    with pytest.raises(UserError, match="bias_mask is not one for queries and values and zero for keys"):
        filled(CONFIGS["dinov3"], tmp_path / "ones.pth")


def sam_folder(path, everywhere, layers=8, window=3):
    settings = transformers.SamVisionConfig(
        **{**SIZES, "num_hidden_layers": layers}, output_channels=8, image_size=32, window_size=window,
        mlp_ratio=2.0, global_attn_indexes=everywhere,
    )  # fmt: skip
    transformers.SamVisionModel(settings).save_pretrained(path)
    return path


@pytest.mark.parametrize("everywhere", [[2, 5, 6], [1, 2], [2, 4, 7], [0, 2]])
def test_sam_with_irregular_global_layers(everywhere, tmp_path):
    found = recognise(open_weight_file(sam_folder(tmp_path, everywhere)))
    listed = ", ".join(map(str, everywhere))
    with pytest.raises(UserError, match=f"layers {listed} of 8 have global attention; this encoder supports"):
        file_fields(found)


def test_sam_global_layers_from_its_configuration(tmp_path):
    """A window as large as the grid: tables of one length, and config.json alone tells the global layers."""
    found = recognise(open_weight_file(sam_folder(tmp_path, [3, 7], window=8)))
    assert file_fields(found)["global_every"] == 4


def test_dofa_generates_its_patch_embedding(tmp_path):
    """The kernels of a file are those its generator makes of the bands, whatever was there before."""
    small = {**OURS, **TABLE, "patch_size": 2}
    config = EncoderConfig("dofa", **small, wavelengths=(0.665, 0.56, 0.49))
    source = make_encoder(config, rngs=nnx.Rngs(1))
    values = {path: leaf for path, leaf in leaves(source).items() if not path[0].startswith("patch_")}
    state = {
        name: torch.from_numpy(x) for name, x in write_tensors(encoder_rules(DOFA, config), values).items()
    }
    extra = {"mask_token": torch.zeros(1), "norm.weight": torch.zeros(1), "projector.bias": torch.zeros(1)}
    torch.save(state | extra, tmp_path / "dofa.pth")
    ours = leaves(filled(config, tmp_path / "dofa.pth"))
    for path, leaf in leaves(source).items():
        np.testing.assert_allclose(ours[path], leaf, atol=1e-6)
    other = EncoderConfig("dofa", **small, in_channels=5, wavelengths=(0.4, 0.5, 0.6, 0.8, 2.2))
    assert leaves(filled(other, tmp_path / "dofa.pth"))["patch_kernel",].shape == (2, 2, 5, 24)


def test_sam(tmp_path):
    """Hugging Face's and Meta's names, with relative positions of windowed and global layers apart."""
    settings = transformers.SamVisionConfig(
        **{**SIZES, "num_hidden_layers": 4}, output_channels=8, image_size=32, window_size=3, mlp_ratio=2.0,
        global_attn_indexes=[1, 3],
    )  # fmt: skip
    model = randomised(transformers.SamVisionModel(settings))
    model.save_pretrained(tmp_path / "hf")
    config = EncoderConfig(
        "sam", **{**OURS, "layers": 4}, table_size=8, window=3, global_every=2, neck_width=8, norm_eps=1e-6
    )
    pixels, hidden = image((32, 32)), []
    for layer in model.vision_encoder.layers:
        layer.register_forward_hook(
            lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    ours = filled(config, tmp_path / "hf")
    assert worst(layers_of(ours, pixels), [x.numpy().reshape(2, 64, 24) for x in hidden]) < 1e-5
    metas = {"vision_encoder": "image_encoder", "patch_embed.projection": "patch_embed.proj",
             ".layers.": ".blocks.", "neck.conv1": "neck.0",
             "neck.layer_norm1": "neck.1", "neck.conv2": "neck.2", "neck.layer_norm2": "neck.3",
             "layer_norm1": "norm1", "layer_norm2": "norm2"}  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for theirs, meta in metas.items():
            name = name.replace(theirs, meta)
        state[name] = value
    torch.save(state, tmp_path / "sam.pth")
    same = leaves(filled(config, tmp_path / "sam.pth"))
    assert all(np.array_equal(same[path], leaf) for path, leaf in leaves(ours).items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 32}, r"holds width 24, config\.model\.visual\.width is 32"),
        ({"layers": 3}, r"holds layers 2, config\.model\.visual\.layers is 3"),
        ({"storage_tokens": 4}, r"holds storage_tokens 0, .*storage_tokens is 4"),
        ({"kind": "clip"}, r"\(DINOv2 \.pth\) holds kind dinov2, .*kind is clip"),
        ({"mlp_width": 64}, r"holds mlp_width 48"),
    ],
)
def test_wrong_architecture(config, message, tmp_path):
    torch.save(meta_state("dinov2"), tmp_path / "x.pth")
    encoder = make_encoder(EncoderConfig(**{"kind": "dinov2", **OURS, **TABLE, **config}), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=message) as error:
        fill_encoder(encoder, open_weight_file(tmp_path / "x.pth"))
    assert "\n" not in str(error.value)


def test_all_mismatches_are_listed_together(tmp_path):
    state = meta_state("dinov2")
    state["surplus"] = state.pop("cls_token")
    state["norm.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        filled(CONFIGS["dinov2"], tmp_path / "x.pth")
    for part in ("missing (1): cls_token", "unexpected (1): surplus", "norm.weight (7,) does not fit"):
        assert part in str(error.value)


def test_format_by_name(tmp_path):
    torch.save(meta_state("dinov2"), tmp_path / "x.pth")
    weights = open_weight_file(tmp_path / "x.pth")
    assert recognise(weights, "meta_dinov2").format.kind == "dinov2"
    with pytest.raises(UserError, match="is not of the format hf_clip"):
        recognise(weights, "hf_clip")
    with pytest.raises(UserError, match="--as nonsense: unknown format; choose from"):
        recognise(weights, "nonsense")
