"""What the shipped grids vary, and the messages for invalid grids."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from spectralmoe_jax.ablation.grid import Grid, folder_of, grid_runs, load_grid
from spectralmoe_jax.adapters.registry import BUILTIN
from spectralmoe_jax.config.adapters import ADAPTER_PRESETS, SpectralMoEConfig
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import LinearHeadConfig, Mask2FormerConfig
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import segmenter_config

PAPERS_ROWS = ["full", "one expert", "shared gate", "no depth", "addition"]


def models(name: str, base: str | None = None) -> dict:
    """The segmenter's settings of every variant."""
    grid = load_grid(f"configs/ablations/{name}.py", base)
    return {variant: segmenter_config(grid.config(variant, 0)) for variant in grid.variants}


def different(one: SpectralMoEConfig, other: SpectralMoEConfig) -> dict:
    """The fields in which two differ, as they are in the second."""
    return {f.name: getattr(other, f.name) for f in dataclasses.fields(one)
            if getattr(one, f.name) != getattr(other, f.name)}  # fmt: skip


SHIPPED = {name.removesuffix(".py") for name in shipped_files("configs.ablations")}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_variant_is_a_configuration(name):
    grid = load_grid(f"configs/ablations/{name}.py")
    found = grid_runs(grid, Path("runs"))
    assert [run.number for run in found] == list(range(len(grid.variants) * len(grid.seeds)))
    assert len({run.folder for run in found}) == len(found)
    assert {run.config.seed for run in found} == set(grid.seeds)
    assert grid.title


def test_every_required_grid_is_shipped():
    wanted = {"components", "experts", "rank", "top_k", "tokens", "gating", "semantics", "switches", "peers",
              "backbones", "depth_encoders", "balance_weight"}  # fmt: skip
    assert wanted <= SHIPPED


@pytest.mark.parametrize("base", ["configs/quickstart.py", "fbp_cross_sensor"])  # of either preset
def test_published_rows(base):
    found = models("components", base)
    assert list(found) == PAPERS_ROWS
    full = found["full"].adapter
    assert full.use_depth
    assert {key: getattr(full, key) for key in ADAPTER_PRESETS["paper"]} == ADAPTER_PRESETS["paper"]
    changed = [different(full, found[name].adapter) for name in PAPERS_ROWS[1:]]
    assert changed == [
        {"num_experts": 1}, {"router": "shared"}, {"use_depth": False, "fusion": "none"}, {"fusion": "add"},
    ]  # fmt: skip


def test_switches_vary_one_at_a_time():
    found = models("switches")
    paper = found["paper"].adapter
    assert {key: getattr(paper, key) for key in ADAPTER_PRESETS["paper"]} == ADAPTER_PRESETS["paper"]
    alone = [different(paper, settings.adapter) for settings in list(found.values())[1:-2]]
    assert alone == [{key: value} for key, value in ADAPTER_PRESETS["released"].items()]
    assert different(paper, found["fusion_value = visual"].adapter) == {"fusion_value": "visual"}
    assert different(paper, found["released"].adapter) == {
        "preset": "released",
        **ADAPTER_PRESETS["released"],
    }


def test_semantics_are_the_two_presets():
    found = models("semantics")
    assert {
        name: {key: getattr(settings.adapter, key) for key in ADAPTER_PRESETS[name]}
        for name, settings in found.items()
    } == ADAPTER_PRESETS


def test_sizes_are_consistent():
    assert [s.adapter.num_experts for s in models("experts").values()] == list(range(1, 13))
    for settings in models("tokens").values():
        assert settings.adapter.num_tokens == settings.head.num_queries
    assert [s.adapter.top_k for s in models("top_k", "dubai").values()] == list(range(1, 7))


def test_every_peer_and_every_gate():
    found = models("peers")
    assert {(s.adapter_kind, type(s.head)) for s in found.values()} == {
        *((kind, Mask2FormerConfig) for kind in BUILTIN), ("none", LinearHeadConfig),
    }  # fmt: skip
    gates = {(s.adapter.gating, s.adapter.full_softmax) for s in models("gating").values()}
    assert gates == set(itertools.product(("laplace", "gaussian", "softmax"), (False, True)))
    for name in ("rank", "balance_weight"):
        values = [getattr(s.adapter, name) for s in models(name).values()]
        assert len(set(values)) == len(values) >= 4


def test_a_published_base_gets_published_encoders():
    found = models("backbones", "fbp_cross_sensor")
    assert list(found) == ["dinov3_l", "dinov2_l", "dofa_l", "clip_l14", "eva02_l", "sam_l"]
    assert {(s.visual.width, s.visual.layers, s.visual.patch_size) for s in found.values()} == {
        (1024, 24, 16)
    }
    found = models("depth_encoders", "configs/fbp_cross_sensor.py:experts=3")
    assert {s.adapter.num_experts for s in found.values()} == {3}
    assert [s.depth.kind for s in found.values() if s.depth] == ["dinov2"] * 3 + ["dinov3"]
    base = segmenter_config(load_config("whu_ohs"))
    assert {s.depth_bands for s in models("depth_encoders", "whu_ohs").values() if s.depth} == {
        base.depth_bands
    }


def test_weights_of_the_base_stay_with_its_encoder(tmp_path):
    (tmp_path / "base.py").write_text(
        "from spectralmoe_jax.config.load import load_config\ndef get_config():\n    return load_config("
        "'configs/fbp_cross_sensor.py', ['--config.model.visual.weights=mine.safetensors'])\n"
    )
    grid = load_grid("backbones", str(tmp_path / "base.py"))
    weights = [grid.config(name, 0).model.visual.weights for name in grid.variants]
    assert weights == ["mine.safetensors"] + [""] * 5


def test_the_example_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    found = grid_runs(load_grid(str(tmp_path / "mine.py")), tmp_path)
    assert len(found) == 12
    assert found[-1].config.train.learning_rate == 2e-3
    assert {run.config.train.steps for run in found} == {600}


def test_the_base_is_given_after_a_colon_or_as_an_option():
    for grid in (load_grid("experts.py:cloud_shadow"), load_grid("experts", "cloud_shadow")):
        assert grid.base == "cloud_shadow"
        assert grid.config("E = 3", 1).name == "cloud_shadow"
    assert load_grid("experts", seeds=5).seeds == (0, 1, 2, 3, 4)


def test_variants_win_over_overrides():
    grid = load_grid("experts")
    overrides = ["--config.model.adapter.num_experts=9", "--config.train.steps=77"]
    config = grid.config("E = 3", 2, overrides)
    assert (config.model.adapter.num_experts, config.train.steps, config.seed) == (3, 77, 2)


def test_the_order_of_settings_does_not_matter():
    settings = {"model.adapter.bottleneck": 32, "model.adapter.kind": "adaptformer"}
    grid = Grid("configs/quickstart.py", {"a": settings}, "a")
    assert segmenter_config(grid.config("a", 0)).adapter.bottleneck == 32


def test_sections_and_unset_values():
    base = "configs/quickstart.py"
    section = {"kind": "dinov2", "width": 64, "layers": 4, "heads": 2, "patch_size": 4}
    grid = Grid(base, {"a": {"model.depth": section, "train.clip_norm": None, "data.source": ("x",)}}, "a")
    config = grid.config("a", 0)
    assert config.given["model"]["depth"] == section
    assert config.train.clip_norm is None
    assert config.data.source == ("x",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": {}}, "variants: a grid needs at least one"),
        ({"reference": "b"}, "reference = 'b': must be one of a"),
        ({"seeds": (1, 1)}, "seeds = .*: must be different whole numbers"),
        ({"seeds": ()}, "seeds = .*: must be different whole numbers"),
        ({"variants": {"a": {}, "a!": {}}}, "'a!' and 'a' would share a folder"),
    ],
)
def test_bad_grids(values, message):
    good = {"base": "configs/quickstart.py", "variants": {"a": {}}, "reference": "a"}
    with pytest.raises(UserError, match=message):
        Grid(**(good | values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.adapter.num_expert": 3}, r"variant 'a': config\.model\.adapter\.num_expert is not a known"),
        ({"model.adapter.top_k": 9}, r"variant 'a': config\.model\.adapter\.top_k = 9"),
        ({"model.adapter.rank": "x"}, r"variant 'a': config\.model\.adapter\.rank"),
        ({"model.deep.section": {}}, r"variant 'a': config\.model\.deep\.section: there is no section"),
        ({"train.batch_size": 0}, r"variant 'a': config\.train\.batch_size"),
        ({"evaluate.overlap": 96}, r"variant 'a': config\.evaluate\.overlap"),
        ({"loss.num_points": -3}, r"variant 'a': config\.loss\.num_points"),
    ],
)
def test_bad_variants_are_rejected_before_anything_runs(settings, message, tmp_path):
    grid = Grid("configs/quickstart.py", {"a": settings}, "a", seeds=(0,))
    with pytest.raises(UserError, match=message):
        grid_runs(grid, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path):
    (tmp_path / "grid.py").write_text("def get_grid(base=''):\n    return 3\n")
    with pytest.raises(UserError, match=r"get_grid\(\) has to return"):
        load_grid(str(tmp_path / "grid.py"))
    (tmp_path / "grid.py").write_text("x = 1 / 0\n")
    with pytest.raises(UserError, match=r"grid\.py:1: ZeroDivisionError"):
        load_grid(str(tmp_path / "grid.py"))
    with pytest.raises(UserError, match=r"grid nowhere does not exist; shipped: configs/ablations/backb"):
        load_grid("nowhere")
    with pytest.raises(UserError, match="--seeds = 0: must be at least 1"):
        load_grid("experts", seeds=0)


def test_folder_names():
    assert [folder_of(name) for name in ("E = 3", "fusion, add/none", "..", "?")] == [
        "E_=_3", "fusion_add_none", "_", "_",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["a" * 300, "ä/" * 200, "../" * 100 + "x" * 200, "\0" * 300, "\udce9" + "b" * 256]
)
def test_a_folder_can_be_made_for_every_variant(name, tmp_path):
    folder = tmp_path / folder_of(name)
    folder.mkdir()
    assert folder.resolve().parent == tmp_path.resolve()
    assert folder_of(name + "c" * 200) != folder_of(name + "d" * 200)


def test_a_variant_that_is_not_named_by_a_string():
    with pytest.raises(UserError, match="must be named by a string"):
        Grid(base="dubai", variants={3: {}}, reference=3)
