"""launch/Dockerfile.*: a small lint; copied files and installed extras exist."""

import json
import re
import tomllib

import pytest

from spectralmoe_jax.cli.arguments import Parser
from spectralmoe_jax.cli.maps import Serve
from tests.launch.conftest import ROOT

KNOWN = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
NAMES = ("cpu", "cuda", "tpu", "serve")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name):
    text = (ROOT / "launch" / f"Dockerfile.{name}").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


def allowed():
    """What .dockerignore lets into the build."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


def test_one_for_each_accelerator_and_one_that_serves():
    assert {path.suffix[1:] for path in (ROOT / "launch").glob("Dockerfile.*")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_lint(name):
    steps = instructions(name)
    assert {word for word, _ in steps} <= KNOWN
    assert [word for word, _ in steps].count("FROM") == 1
    word, base = steps[0]
    assert word == "FROM"
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-[a-z]+", base)
    assert version, f"{base}: pin the version, never latest"
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]
    users = [index for index, (word, _) in enumerate(steps) if word == "USER"]
    assert len(users) == 1
    # By number, or Kubernetes cannot tell that it is not root. Nothing is installed after it.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", steps[users[0]][1])
    assert all(word in {"ENV", "ENTRYPOINT", "CMD"} for word, _ in steps[users[0] + 1 :])
    for word, rest in steps:
        assert word not in {"ENTRYPOINT", "CMD"} or rest.startswith('["')
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert rest.startswith("apt-get update && ")
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if word == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest


@pytest.mark.parametrize("name", NAMES)
def test_every_source_exists_and_may_be_copied(name):
    sources = []
    for word, rest in instructions(name):
        if word == "COPY":
            sources += rest.split()[:-1]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    assert set(sources) == allowed()
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} - {"tests"}
    assert packages <= set(sources)


@pytest.mark.parametrize("name", NAMES)
def test_extra(name):
    [install] = [rest for word, rest in instructions(name) if word == "RUN" and "pip install" in rest]
    default = dict(rest.split("=") for word, rest in instructions(name) if word == "ARG")
    filled = re.sub(r"\$\{(\w+)\}", lambda found: default[found[1]], install)
    extra = re.search(r"\[(\w+)\]", filled)
    if name == "cpu":
        assert extra is None
    else:
        assert extra[1] in PROJECT["optional-dependencies"]


def test_the_server_listens_where_its_port_can_be_published():
    commands = dict(instructions("serve"))
    entry, given = (json.loads(commands[word]) for word in ("ENTRYPOINT", "CMD"))
    parser = Parser("serve", None)
    Serve.add_arguments(parser)
    assert entry[:2] == ["spectralmoe", "serve"]
    assert given == ["--help"]
    assert parser.parse_args([*entry[2:], "/model"]).host == "0.0.0.0"


def test_images_of_the_manifest_are_of_this_version():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "spectralmoe_jax/__init__.py").read_text())[1]
    for path in ("launch/gke_jobset.yaml", *(f"launch/Dockerfile.{name}" for name in NAMES)):
        tags = re.findall(r"spectralmoe:\w+-(\S+)", (ROOT / path).read_text())
        assert tags
        assert set(tags) == {version}
