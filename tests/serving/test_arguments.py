"""`spectralmoe serve` with bad input: one line, exit status 2, and nothing is served."""

import importlib
import importlib.util
import inspect
import shutil
import socket

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import spectralmoe_jax
from spectralmoe_jax import serving
from spectralmoe_jax.cli.arguments import Parser
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.cli.maps import Serve
from spectralmoe_jax.errors import UserError
from tests.serving.images import OLD_RUN


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(OLD_RUN / "runs.tar.xz", folder)
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--queue", "0"], "--queue = 0: must be at least 1"),
        (["--queue", "many"], "argument --queue: invalid int value: 'many'"),
        (["--max-mb", "0"], "--max-mb = 0.0: must be a number above 0"),
        (["--max-mb", "nan"], "--max-mb = nan: must be a number above 0"),
        (["--max-megapixels", "-1"], "--max-megapixels = -1.0: must be a number above 0"),
        (["--timeout", "inf"], "--timeout = inf: must be a number above 0"),
        (["--timeout", "soon"], "argument --timeout: invalid float value: 'soon'"),
        (["--port", "70000"], "--port = 70000: must be between 0 and 65535"),
        (["--port", "-1"], "--port = -1: must be between 0 and 65535"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: cannot be listened on"),
        (["--host", "no such host"], "--host no such host --port 8000: cannot be listened on"),
        (["--tta", "often"], "argument --tta"),
        (["--stream", "other"], "other"),
        (["--config", "nowhere.py"], "nowhere.py"),
        (["--config.evaluate.window=0"], "config.evaluate.window = 0: must be between 1 and 16384"),
        (["--checkpoint", "another"], "not allowed with argument RUN"),
    ],
)
def test_bad_options(run, capsys, options, expected):
    before = sorted(run.rglob("*"))
    assert main(["serve", str(run), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(("given", "expected"), [([], "RUN --checkpoint"), (["nowhere"], "nowhere")])
def test_no_model(capsys, given, expected):
    assert main(["serve", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_a_port_in_use(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--port {port}: cannot be listened on (Address already in use)" in error


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spectralmoe-jax\[serve\]'"):
        importlib.reload(serving)


def test_this_machine_alone_can_connect_by_default():
    parser = Parser("serve", None)
    Serve.add_arguments(parser)
    assert parser.parse_args(["run"]).host == "127.0.0.1"
    assert inspect.signature(spectralmoe_jax.serve).parameters["host"].default == "127.0.0.1"
