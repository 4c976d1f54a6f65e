"""Text of a written configuration: a Python file that holds names as data, whatever they are."""

import ast
import dataclasses
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import spectralmoe_jax
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.project_setup.init import Options, settle
from spectralmoe_jax.project_setup.text import configuration_text
from tests.project_setup.folders import write_folder

CODE = 'x"""+str(__import__("os").system("touch pwned"))+"""'
NASTY = [CODE, "back\\Nslash", "b\\N{x}", "line\nimport os", 'end"', '"""', "\\", "ü {q}", "#\r", "[/b]"]
names = st.one_of(st.sampled_from(NASTY), st.text("\"\\\n\r#{}'ü\u2028N x", max_size=8), st.text(max_size=8))
files = names.map(lambda name: name.replace("/", "|").replace("\0", "|")).filter(lambda name: name.strip("."))
fours = st.lists(names, min_size=4, max_size=4, unique=True).map(tuple)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("folder"))
    return settle(str(folder), Options(target=("south",), ignore="0", classes=("a", "b", "c")), None)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(folder=names, place=files, domains=fours, bands=fours, classes=fours, rest=fours)
@example(folder=CODE, place=CODE, domains=NASTY[:4], bands=NASTY[:4], classes=NASTY[:4], rest=NASTY[:4])
@example(
    folder="\\N{x}", place="\\", domains=NASTY[4:8], bands=NASTY[4:8], classes=NASTY[4:8], rest=NASTY[4:8]
)
def test_names_are_data(found, folder, place, domains, bands, classes, rest):
    """The file parses, its docstring and values are the names given, and nothing else is called."""
    domains, bands, classes, rest = map(tuple, (domains, bands, classes, rest))
    pattern, template, attribute, layer = rest
    source, target, held_out = domains[:1], domains[1:2], domains[2:]
    output = Path("there") / f"{place}.py"
    changed = dataclasses.replace(
        found,
        folder=folder,
        layout=dataclasses.replace(found.layout, image_glob=pattern, mask_template=template),
        source=source,
        target=target,
        held_out=held_out,
        bands=dataclasses.replace(found.bands, names=bands, file_bands=bands),
        contents=dataclasses.replace(found.contents, attribute=attribute, layer=layer),
        classes=dataclasses.replace(found.classes, names=classes[:3]),
    )
    tree = ast.parse(configuration_text(changed, output))
    first, _, last = ast.get_docstring(tree, clean=False).partition("\n\nWritten by ")
    assert first == (f"3 classes: {source[0]} to train on, {target[0]} to test on.")
    told, _, command = last.rpartition("\n\n  ")
    assert told.startswith(f"`spectralmoe init`. {place}.png shows ")
    assert shlex.split(command, comments=False) == [
        "spectralmoe", "train", "--config", output.as_posix(), "--workdir", f"runs/{place}",
    ]  # fmt: skip
    assigned = {
        ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
    }
    expected = {
        "config.bands": bands, "config.data.file_bands": bands, "config.classes.names": classes[:3],
        "config.data.root": folder, "config.data.image_glob": pattern, "config.data.mask_template": template,
        "config.data.source": source, "config.data.target": target, "config.data.holdout_domains": held_out,
        **({"config.data.label_attribute": attribute} if attribute else {}),
        **({"config.data.label_layer": layer} if layer else {}),
    }  # fmt: skip
    for name, value in expected.items():
        assert ast.literal_eval(assigned[name]) == value, name
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert ast.unparse(call.func) == "common.small"
    assert [ast.literal_eval(argument) for argument in call.args] == [place]
    assert [type(node) for node in tree.body] == [ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.FunctionDef]


@pytest.mark.parametrize("name", [CODE, "b\\N{x} [red]\nline"])
def test_folders_with_such_names(name, tmp_path, monkeypatch, capsys):
    """A configuration is written and can be loaded; nothing is executed, and nothing read as markup."""
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / name)
    (folder / "north").rename(folder / f"{name}_north")
    config = spectralmoe_jax.init_config(folder, f"{name}.py", target="south", ignore="0")
    assert config.data.source == (f"{name}_north",)
    assert config == load_config(str(tmp_path / f"{name}.py"))
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.py", f"{name}.png"}
    shown = name.replace("\n", r"\n")  # one line
    assert f"{shown}.py: the configuration" in capsys.readouterr().out
