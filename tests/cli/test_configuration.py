"""Configurations: overrides take the type of what they replace, and storing loses nothing."""

import dataclasses
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from spectralmoe_jax.config.load import shipped_files
from spectralmoe_jax.configuration import (
    apply_overrides,
    from_config,
    load_config,
    read_config,
    save_config,
)
from spectralmoe_jax.errors import UserError

NAMES = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: not name.startswith("_"))
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
CONFIGS = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=4),
    lambda inner: st.dictionaries(NAMES, VALUES | inner, max_size=4),
)


@pytest.fixture
def config():
    return ConfigDict(
        {
            "steps": 10,
            "rate": 0.5,
            "flip": True,
            "kind": "none",
            "root": "data",
            "depth": {"width": 4},
            "clip": None,
        }
        | {"source": ("tile_1", "tile_2"), "betas": (0.9, 0.999), "colours": ((1, 2, 3),), "listed": [1, [2]]}
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "20", 20),
        ("rate", "2", 2.0),
        ("rate", "1e-3", 0.001),
        ("flip", "false", False),
        ("flip", "True", True),
        ("kind", "none", "none"),
        ("root", "a=b/c d", "a=b/c d"),
        ("root", "3", "3"),
        ("source", "tile_1", ("tile_1",)),
        ("source", "tile_1,tile_3", ("tile_1", "tile_3")),
        ("source", "('tile_1',)", ("tile_1",)),
        ("betas", "(0.8,0.9)", (0.8, 0.9)),
        ("betas", "0.8, 0.9", (0.8, 0.9)),
        ("colours", "((1,2,3),(4,5,6))", ((1, 2, 3), (4, 5, 6))),
        ("clip", "0.5", 0.5),
        ("depth", "none", None),
        ("depth.width", "8", 8),
    ],
)
def test_override_is_read_by_the_type_it_replaces(config, key, text, value):
    before = config.to_dict()
    changed = apply_overrides(config, [f"--config.{key}={text}"])
    for part in key.split("."):
        changed = changed[part]
    assert changed == value
    assert type(changed) is type(value)
    assert config.to_dict() == before


def test_later_overrides_win_and_lists_become_tuples(config):
    changed = apply_overrides(config, ["--config.steps=1", "--config.steps=2"])
    assert changed.steps == 2
    assert changed.listed == (1, (2,))
    assert changed.is_locked


@settings(deadline=None)
@given(values=CONFIGS)
def test_stored_configuration_reads_back_equal(values, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.json"
    config = apply_overrides(ConfigDict(values), [])
    save_config(config, path)
    again = read_config(path)
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert [entry for entry in path.parent.iterdir() if entry.name.startswith(".config.json")] == []


def test_truncated_stored_configuration_is_named(config, tmp_path):
    path = tmp_path / "config.json"
    save_config(config, path)
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match=r"config\.json is not a stored configuration"):
        read_config(path)


def test_arguments_after_the_colon_reach_get_config(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config(a=''): return ConfigDict({'a': a})\n"
    )
    assert load_config(str(path)).a == ""
    assert load_config(f"{path}:experts=3").a == "experts=3"


def test_shipped_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_files("configs")
    for name in shipped_files("configs"):
        assert load_config(f"configs/{name}") == load_config(name.removesuffix(".py"))


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner
    betas: tuple[float, float] = (0.9, 0.99)
    names: tuple[str, ...] = ()
    clip: float | None = None
    ranks: int | tuple[int, ...] = 16
    anything: Any = None


GOOD = {"rate": 1, "inner": {"width": 3}, "names": ("x",), "ranks": (1, 2)}


def test_dataclass_from_a_section():
    built = from_config(Outer, ConfigDict(GOOD), "train")
    assert built == Outer(rate=1.0, inner=Inner(3), names=("x",), ranks=(1, 2))
    assert type(built.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rat": 1}, r"config\.train\.rat is not a known key; nearest: rate"),
        ({"rate": "fast"}, r"config\.train\.rate: takes a number, not 'fast'"),
        ({"rate": True}, r"config\.train\.rate"),
        ({"inner": {"width": 3.5}}, r"config\.train\.inner\.width"),
        ({"inner": {"width": 3, "kind": "c"}}, r"config\.train\.inner\.kind is 'c'; allowed: 'a', 'b'"),
        ({"inner": {}}, r"config\.train\.inner\.width is missing"),
        ({"inner": 3}, r"config\.train\.inner"),
        ({"betas": (0.9,)}, r"config\.train\.betas"),
        ({"names": "x"}, r"config\.train\.names"),
        ({"names": ("x", 3)}, r"config\.train\.names\[1\]"),
        ({"clip": "no"}, r"config\.train\.clip"),
        ({"ranks": 1.5}, r"config\.train\.ranks"),
        ({"rate": float("nan")}, r"config\.train\.rate: takes finite numbers, not nan"),
        ({"rate": float("-inf")}, r"config\.train\.rate: takes finite numbers, not -inf"),
        ({"betas": (0.9, float("inf"))}, r"config\.train\.betas\[1\]: takes finite numbers, not inf"),
    ],
)
def test_section_that_does_not_fit_names_the_key(change, message):
    with pytest.raises(UserError, match=message):
        from_config(Outer, ConfigDict(GOOD | change), "train")
