"""The choice of an adapter and a head: by name, by import path, and on the command line."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.adapters.registry import BUILTIN, adapter_class
from spectralmoe_jax.checkpoints.same_model import model_part
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.adapters import ADAPTERS
from spectralmoe_jax.config.load import load_config, load_given
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import evaluate
from spectralmoe_jax.inference.predict_step import make_routed_step
from spectralmoe_jax.inference.segmenter_weights import load_trained
from spectralmoe_jax.inference.sliding_window import expert_maps
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves, segmenter_config
from spectralmoe_jax.parameters import join, leaves, split
from spectralmoe_jax.training.train import train
from spectralmoe_jax.weights.reading import open_weight_file
from spectralmoe_jax.weights.released import stream_segmenter
from tests.tiny_run import SIZES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adding_an_adapter.md"
FULL = "configs/fbp_cross_sensor.py"


def adapter_of(*overrides, file=FULL):
    return load_given(file, [f"--config.{override}" for override in overrides])["model"]["adapter"]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The documentation's own adapter in a file of its own, and the user beside it."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_adapter.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_kept_when_the_kind_changes():
    linked = {"num_tokens": 100, "rank": 16, "query_dim": 256}
    assert adapter_of("model.adapter.kind=rein") == {"kind": "rein", **linked}
    # whatever the order, the kind comes first and the rest is held against it
    changed = {"kind": "rein", **linked, "rank": 8}
    assert adapter_of("model.adapter.kind=rein", "model.adapter.rank=8") == changed
    assert adapter_of("model.adapter.rank=8", "model.adapter.kind=rein") == changed
    assert adapter_of("model.adapter.kind=lora") == {"kind": "lora"}
    assert adapter_of("model.adapter.kind=spectral_moe") == adapter_of() | {"kind": "spectral_moe"}
    quick = adapter_of("model.adapter.kind=set", file="configs/quickstart.py")
    assert quick == {"kind": "set", "num_tokens": 12, "rank": 8, "query_dim": 32, "scale_init": 0.1}


def test_the_head_follows_the_same_rule():
    config = load_config("configs/dubai.py", ["--config.model.head.kind=linear"])
    assert config.given["model"]["head"] == {"kind": "linear"}
    settings = segmenter_config(config)
    joined = len(settings.out_layers) * settings.visual.width
    assert abstract_segmenter(settings).head.classifier.kernel.shape == (joined, len(config.classes.names))
    with pytest.raises(UserError, match=r"config\.model\.head\.width is not a known key"):
        load_config("configs/dubai.py", ["--config.model.head.kind=linear", "--config.model.head.width=8"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("kind=rein", "num_experts=3"), r"config\.model\.adapter\.num_experts is not a known key"),
        (("num_experts=3", "kind=rein"), r"config\.model\.adapter\.num_experts is not a known key"),
        (("kind=lora", "lora_rnak=3"), r"lora_rnak is not a known key; nearest: lora_rank"),
        (
            ("kind=lora", "lora_rank=three"),
            r"config\.model\.adapter\.lora_rank = 'three': must be a whole number",
        ),
        (
            ("kind=rien",),
            r"config\.model\.adapter\.kind = 'rien': did you mean rein\? there are spectral_moe",
        ),
    ],
)
def test_keys_are_checked_against_the_new_kind(overrides, message):
    with pytest.raises(UserError, match=message):
        segmenter_config(load_config(FULL, [f"--config.model.adapter.{override}" for override in overrides]))


def test_an_explicit_default_is_the_same_model():
    kinds = ["--config.model.adapter.kind=spectral_moe", "--config.model.head.kind=mask2former"]
    assert model_part(load_given(FULL, kinds)) == model_part(load_given(FULL))
    other = model_part(load_given(FULL, ["--config.model.adapter.kind=rein"]))
    assert other["model.adapter.kind"] == "rein"


def test_checkpoints_without_kinds_are_still_read():
    """What is stored with them, of a configuration without depth, is what is compared today."""
    part = model_part(load_given("configs/dubai.py"))
    assert part["model.depth"] is None
    assert not any(key.endswith(".kind") for key in part if "adapter" in key or "head" in key)


def test_every_builtin_takes_the_settings_of_its_kind():
    assert BUILTIN.keys() == ADAPTERS.keys()
    for kind, settings in ADAPTERS.items():
        assert adapter_class(kind).Config is settings
        assert settings.kind == kind


PROBLEMS = {
    "missing.py:Mine": "there is no file .*missing.py",
    "no_such_module:Mine": "no_such_module: ModuleNotFoundError",
    "my_adapter.py:ScaleAndShft": "has no ScaleAndShft; did you mean ScaleAndShift",
    "my_adapter.py:Settings": "is no subclass of spectralmoe_jax.adapters.base.Adapter; an adapter",
    "broken.py:Mine": "broken.py: SyntaxError",
    "half.py:NoAdapter": "is no subclass of spectralmoe_jax.adapters.base.Adapter; an adapter",
    "half.py:NoConfig": "has no dataclass Config; an adapter",
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_invalid_adapters_are_rejected_in_one_line(kind, example):
    (example / "broken.py").write_text("class Mine(:\n")
    (example / "half.py").write_text(
        "import dataclasses\nfrom flax import nnx\n"
        "from spectralmoe_jax.adapters.base import Adapter\n"
        "@dataclasses.dataclass\nclass S: pass\n"
        "class NoAdapter(nnx.Module):\n    Config = S\n    def layer(self): ...\n"
        "class NoConfig(Adapter):\n    def layer(self): ...\n"
    )
    config = load_config(FULL, [f"--config.model.adapter.kind={kind}"])
    with pytest.raises(UserError, match=PROBLEMS[kind]) as raised:
        segmenter_config(config)
    assert str(raised.value).startswith(f"config.model.adapter.kind = {kind!r}")
    assert "\n" not in str(raised.value)


def test_a_users_adapter_has_its_own_keys(example):
    kind = "--config.model.adapter.kind=my_adapter:ScaleAndShift"
    settings = segmenter_config(load_config(FULL, [kind, "--config.model.adapter.penalty=0.5"]))
    assert settings.adapter.penalty == 0.5
    assert not settings.uses_depth
    for key, message in (("penalti=1", "penalti is not a known key; nearest: penalty"),
                         ("penalty=much", "penalty = 'much': must be a number"),
                         ("penalty=-1", "penalty = -1.0: must be 0 or more")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            segmenter_config(load_config(FULL, [kind, f"--config.model.adapter.{key}"]))


def test_the_released_layout_has_no_other_kinds(goldens):
    file = open_weight_file(goldens / "released_tiny" / "dinov3_laplace_k1.safetensors")
    for section, kind in (("adapter", "rein"), ("head", "linear")):
        settings = segmenter_config(load_config(FULL, [f"--config.model.{section}.kind={kind}"]))
        with pytest.raises(UserError, match=rf"model\.{section}\.kind = '{kind}' has no released layout"):
            next(stream_segmenter(file, settings, {}, {section}))


def test_a_users_adapter_with_experts_states_their_number(example):
    """Where it does not, the first batch says so instead of failing in a count."""
    text = (example / "my_adapter.py").read_text()
    (example / "my_adapter.py").write_text(
        text + "\n\nclass Choosing(ScaleAndShift):\n"
        "    def layer(self, weights, visual, *rest):\n"
        "        out = super().layer(weights, visual, *rest)\n"
        "        return out._replace(experts=jnp.zeros((1, *visual.shape[:2]), jnp.int32))\n"
    )
    overrides = [f"--config.{size}" for size in SIZES if not size.startswith("model.adapter")]
    config = load_config(
        "configs/quickstart.py", [*overrides, "--config.model.adapter.kind=my_adapter.py:Choosing"]
    )
    structure = abstract_segmenter(segmenter_config(config))
    pixels = jnp.zeros((1, 32, 32, 4), jnp.int16)
    with pytest.raises(UserError, match=r"Choosing.*its Config has to have num_experts"):
        jax.eval_shape(lambda *parts: join(structure, *parts).scores(pixels), *split(structure))


def test_a_users_adapter_from_training_to_scores(example):
    """The documentation's example, trained, stopped, resumed, evaluated and taken out of its folder."""
    overrides = [f"--config.{size}" for size in SIZES if not size.startswith(("model.adapter", "model.head"))]
    overrides += ["--config.model.adapter.kind=my_adapter.py:ScaleAndShift",
                  "--config.model.adapter.penalty=0.1", "--config.train.evaluate_every=9",
                  "--config.model.head.kind=linear"]  # fmt: skip
    for steps in (2, 3):
        config = load_config("configs/quickstart.py", [*overrides, f"--config.train.steps={steps}"])
        assert train(config, example / "run")["step"] == steps
    trained = leaves(load_trained(example / "run", config))
    names = [
        ("head", "classifier", "kernel"),
        ("backbone", "adapter", "gain"),
        ("backbone", "adapter", "shift"),
    ]
    start = random_leaves(segmenter_config(config), config.seed, names)
    assert all(np.any(np.asarray(trained[name]) != np.asarray(start[name])) for name in names)
    with CheckpointStore(example / "run", config) as store:
        assert store.last == 3
    assert 0 <= evaluate(example / "run", config)["miou"] <= 1
    with pytest.raises(UserError, match=r"--to released: config\.model\.adapter\.kind = 'my_adapter"):
        convert(str(example / "run"), str(example / "out.pth"), to="released", allow_code=True)
    convert(str(example / "run"), str(example / "out.safetensors"), allow_code=True)
    step = make_routed_step(load_trained(example / "run", config))
    with pytest.raises(UserError, match="has no experts"):
        expert_maps(step, np.zeros((32, 32, 4), np.uint8), window=32, batch_size=1)
