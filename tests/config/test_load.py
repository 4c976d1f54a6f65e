"""Configurations from files, overrides, and their storage with a run."""

import json
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from spectralmoe_jax.config.fields import Section
from spectralmoe_jax.config.given import given_of
from spectralmoe_jax.config.load import as_run_config, load_config, load_given
from spectralmoe_jax.config.overrides import apply_overrides, apply_settings
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import read_config, read_given, save_config
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


def value_at(given, key):
    for part in key.split("."):
        given = given[part]
    return given


@pytest.fixture
def own():
    """A configuration of keys that the schema does not have: overrides follow the values they replace."""
    return given_of(
        ConfigDict(
            {
                "steps": 10,
                "rate": 0.5,
                "flip": True,
                "kind": "none",
                "root": "data",
                "box": {"width": 4},
                "clip": None,
            }
            | {"source": ("tile_1", "tile_2"), "betas": (0.9, 0.999), "colours": ((1, 2, 3),)}
            | {"listed": [1, [2]]}
        )
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
        ("box", "none", None),
        ("box.width", "8", 8),
    ],
)
def test_override_is_read_by_the_type_it_replaces(own, key, text, value):
    before = dict(own)
    changed = value_at(apply_overrides(own, [f"--config.{key}={text}"]), key)
    assert changed == value
    assert type(changed) is type(value)
    assert own == before


def test_later_overrides_win_and_lists_become_tuples(own):
    changed = apply_overrides(own, ["--config.steps=1", "--config.steps=2"])
    assert changed["steps"] == 2
    assert changed["listed"] == (1, (2,))


OVERRIDES = [
    ("name", "none", "none"),
    ("seed", "3", 3),
    ("bands", "red,green,blue", ("red", "green", "blue")),
    ("bands", "1,2,3", ("1", "2", "3")),
    ("classes.palette", "((1,2,3),(4,5,6))", ((1, 2, 3), (4, 5, 6))),
    ("data.root", "3", "3"),
    ("data.source", "tile_1", ("tile_1",)),
    ("data.source", "('tile_1',)", ("tile_1",)),
    ("data.image_glob", "*.tif", "*.tif"),
    ("data.sensors", "a=landsat5,b=landsat7", ("a=landsat5", "b=landsat7")),
    ("data.corrupt", "skip", "skip"),
    ("data.weights", "0.7,0.3", (0.7, 0.3)),
    ("data.weights", "(1, 2)", (1.0, 2.0)),
    ("data.class_temperature", "0.05", 0.05),
    ("data.class_temperature", "none", None),
    ("data.min_labelled", "0.1", 0.1),
    ("data.file_bands", "red,green,blue", ("red", "green", "blue")),
    ("data.holdout_domains", "2018,2019", ("2018", "2019")),
    ("data.holdout_domains", "2018", ("2018",)),
    ("data.label_layer", "roads", "roads"),
    ("data.label_values", "1,2,(3,4)", (1, 2, (3, 4))),
    ("data.label_values", "forest,water", ("forest", "water")),
    ("data.ignore_colours", "((1,2,3),)", ((1, 2, 3),)),
    ("data.cache_bytes", "0", 0),
    ("data.threads", "8", 8),
    ("data.tile", "256", 256),
    ("model.out_layers", "0,1,2,3", (0, 1, 2, 3)),
    ("model.pixel_mean", "1,2,3", (1.0, 2.0, 3.0)),
    ("model.visual.wavelengths", "0.49,0.56", (0.49, 0.56)),
    ("model.weights", "a.pth,b.pth", "a.pth,b.pth"),
    ("model.weights", "none", None),
    ("model.adapter.rank", "8", 8),
    ("model.adapter.rank", "8,4", (8, 4)),
    ("model.adapter.distance", "l2", "l2"),
    ("augment.gain", "0.1", 0.1),
    ("augment.turns", "true", True),
    ("sensor", "landsat8", "landsat8"),
    ("sensor", "none", None),
    ("weight", "2", 2.0),
    ("train.steps", "20", 20),
    ("train.learning_rate", "1e-3", 0.001),
    ("train.betas", "0.8, 0.9", (0.8, 0.9)),
    ("train.clip_norm", "none", None),
    ("train.rules", "(('bias', 0, 1),)", (("bias", 0.0, 1.0),)),
    ("evaluate.window", "64", 64),
    ("parallel.data", "2", 2),
]


@pytest.mark.parametrize(("key", "text", "value"), OVERRIDES)
@pytest.mark.parametrize("name", ["dubai.py", "loveda.py"])
def test_a_key_of_any_configuration_whether_its_file_has_it_or_not(name, key, text, value):
    found = value_at(load_given(f"configs/{name}", [f"--config.{key}={text}"]), key)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize("name", ["dubai.py", "flair.py"])
def test_every_default_can_be_given(name):
    """What `spectralmoe config` prints for a key is what the command line takes for it."""
    config = load_config(f"configs/{name}")
    for section in ("data", "augment", "loss", "train", "train.lr_factors", "evaluate", "parallel"):
        values = vars(operator.attrgetter(section)(config))
        for key, value in values.items():
            if isinstance(value, Section):
                continue
            text = "none" if value is None else str(value)
            changed = load_config(f"configs/{name}", [f"--config.{section}.{key}={text}"])
            assert changed == config, (section, key)


def test_only_what_is_given_is_stored(tmp_path):
    plain = load_config("configs/dubai.py")
    save_config(load_config("configs/dubai.py", ["--config.data.corrupt=skip"]), tmp_path / "config.json")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["data"].pop("corrupt") == "skip"
    save_config(plain, tmp_path / "plain.json")
    assert stored == json.loads((tmp_path / "plain.json").read_text())
    assert read_config(tmp_path / "plain.json", ["--config.data.workers=3"]).data.workers == 3


@settings(deadline=None)
@given(values=CONFIGS)
def test_stored_configuration_reads_back_equal(values, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.json"
    given = given_of(ConfigDict(values))
    run = load_config("configs/dubai.py")
    object.__setattr__(run, "given", given)
    save_config(run, path)
    assert read_given(path) == given
    assert [entry for entry in path.parent.iterdir() if entry.name.startswith(".config.json")] == []


@pytest.mark.parametrize("name", shipped_files("configs"))
def test_stored_configuration_is_the_configuration(name, tmp_path):
    config = load_config(name)
    save_config(config, tmp_path / "config.json")
    again = read_config(tmp_path / "config.json")
    assert again == config
    assert again.given == config.given


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_stored_configuration_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        read_config(path)


def test_arguments_after_the_colon_reach_get_config(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config(a=''): return ConfigDict({'a': a})\n"
    )
    assert load_given(str(path)) == {"a": ""}
    assert load_given(f"{path}:experts=3") == {"a": "experts=3"}


def test_shipped_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_files("configs")
    for name in shipped_files("configs"):
        assert load_config(f"configs/{name}") == load_config(name.removesuffix(".py"))


def test_a_section_that_is_not_there_is_made(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 0})\n"
    )
    assert load_given(str(file), ["--config.data.tile=64"]) == {"seed": 0, "data": {"tile": 64}}


def test_keys_of_a_stream():
    streams = {"landsat": {"sensor": "landsat8"}}
    config = load_given("configs/dubai.py", [f"--config.streams={streams}"])
    changed = apply_overrides(
        config, ["--config.streams.landsat.weight=0.5", "--config.streams.landsat.data.tile=64"]
    )
    assert changed["streams"] == {"landsat": {"sensor": "landsat8", "weight": 0.5, "data": {"tile": 64}}}
    assert config["streams"] == streams
    assert apply_overrides(config, ["--config.streams=none"])["streams"] is None
    with pytest.raises(UserError, match=r"config\.streams\.lansat is not a known key; nearest: landsat"):
        apply_overrides(config, ["--config.streams.lansat.weight=0.5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.corupt=skip", "config.data.corupt is not a known key; nearest: corrupt"),
        ("data.min_labeled=0", "config.data.min_labeled is not a known key; nearest: min_labelled"),
        ("dta.tile=1", "config.dta is not a known key; nearest: data"),
        ("sensr=x", "config.sensr is not a known key; nearest: sensor"),
        ("model.visual.wavelength=1", "nearest: wavelengths"),
        ("model.visual.bands=red", "config.model.visual.bands is not a known key"),
        ("data.tile=big", "config.data.tile = 'big': must be a whole number"),
        ("data.weights=a,b", "config.data.weights[0] = 'a': must be a number"),
        ("data.min_labelled=none", "config.data.min_labelled = None: must be a number"),
        (
            "model.depth.trainable=true",
            "config.model.depth is None, not a section: it has no key 'trainable'",
        ),
        ("model.visual=3", "config.model.visual is a section; set one of its keys or none, not '3'"),
        ("model.adapter=3", "config.model.adapter is a section; set one of its keys or none, not '3'"),
        ("augment.turns=maybe", "config.augment.turns = 'maybe': must be one of true, yes, 1, false, no, 0"),
        ("model.adapter.kind=lora,model.adapter.rank=3", "config.model.adapter.rank is not a known key"),
        ("train.learning_rate=nan", "config.train.learning_rate = nan: must be finite"),
        ("data.label_values=(1,1e999)", "config.data.label_values = (1, inf): must be finite"),
        ("streams.b.x=1", "config.streams.b is not a known key"),
    ],
)
def test_what_is_refused(override, message):
    first, *rest = override.split(",m")
    with pytest.raises(UserError) as error:
        load_config("configs/dubai.py", [f"--config.{part}" for part in (first, *(f"m{r}" for r in rest))])
    assert message in str(error.value)


def test_a_new_kind_keeps_what_it_has_too():
    rein = load_given("configs/dubai.py", ["--config.model.adapter.kind=rein"])
    assert rein["model"]["adapter"] == {"kind": "rein", "num_tokens": 20, "rank": 8, "query_dim": 64}
    linear = load_given("configs/dubai.py", ["--config.model.head.kind=linear"])
    assert linear["model"]["head"] == {"kind": "linear"}
    mine = load_given("configs/dubai.py", ["--config.model.adapter.kind=mine.py:Mine"])
    assert mine["model"]["adapter"] == {"kind": "mine.py:Mine"}
    assert RunConfig.from_given(rein).model.adapter.rank == 8


def test_settings_of_a_grid_are_read_as_overrides_are():
    given = load_given("configs/dubai.py")
    changed = apply_settings(
        given,
        {"model.depth.width": 8, "model.depth": {"heads": 2}, "model.adapter.rank": (1, 2), "sensor": None,
         "model.adapter.use_depth": True},
    )  # fmt: skip
    assert changed["model"]["depth"] == {"heads": 2, "width": 8}
    assert changed["model"]["adapter"]["rank"] == (1, 2)
    assert changed["model"]["adapter"]["use_depth"] is True
    with pytest.raises(UserError, match=r"config\.modl\.depth: there is no section config\.modl"):
        apply_settings(given, {"modl.depth": {"width": 8}})


def test_shipped_configurations_take_all_that_messages_advise():
    advised = ("data.corrupt=skip", "data.min_labelled=0.1", "sensor=none", "data.holdout_domains=none")
    for name in shipped_files("configs"):
        load_config(name, [f"--config.{override}" for override in advised])


def test_public_functions_take_every_form_of_a_configuration():
    read = load_config("configs/dubai.py")
    section = ConfigDict(json.loads(json.dumps(read.given)))
    assert as_run_config(read) is read
    assert as_run_config("dubai") == read
    assert as_run_config(section) == read
    assert as_run_config(section).given == read.given
