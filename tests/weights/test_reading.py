"""Unreadable files give one line; hub names work from the cache and fail fast without a network."""

import hashlib
import http.server
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.reading import open_weight_file

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}


def message(spec):
    with pytest.raises(UserError) as error:
        open_weight_file(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_tensors_are_read_lazily(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    torch.save({"state_dict": {name: torch.from_numpy(x) for name, x in TENSORS.items()}}, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        weights = open_weight_file(tmp_path / name)
        assert set(weights) == {"a", "b"}
        assert weights.shape("a") == (2, 3)
        np.testing.assert_array_equal(weights["a"], TENSORS["a"])
        assert weights["b"].dtype == bool
        assert "c" not in weights
        assert weights.spec == str(tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    from safetensors.torch import save_file as save_torch

    value = torch.randn(50).to(dtype)
    save_torch({"x": value}, tmp_path / "x.safetensors")
    torch.save({"x": value}, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        found = open_weight_file(tmp_path / name)["x"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value.float().numpy())


def test_missing_files_and_unknown_formats(tmp_path):
    assert "no such file or folder" in message(tmp_path / "nothing.pth")
    (tmp_path / "x.npz").touch()
    assert "weights are files ending in .safetensors, .pth" in message(tmp_path / "x.npz")


@pytest.mark.parametrize("keep", [0, 5, 60, 0.9])
def test_truncated_safetensors(tmp_path, keep):
    save_file(TENSORS, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(
        whole[: keep if isinstance(keep, int) else int(len(whole) * keep)]
    )
    assert "not a complete safetensors file" in message(tmp_path / "x.safetensors")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_pth(tmp_path, keep):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    assert "not a complete file of torch.save" in message(tmp_path / "x.pth")


def test_files_that_are_not_pth(tmp_path):
    (tmp_path / "x.pth").write_text("<html>sign in first</html>")
    assert "not a complete file of torch.save" in message(tmp_path / "x.pth")
    torch.save({"epoch": 3}, tmp_path / "y.pth")
    assert "holds no tensors by name" in message(tmp_path / "y.pth")


class Payload:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (str(self.witness), "w")


@pytest.mark.parametrize("archive", [True, False])
def test_code_is_not_run(tmp_path, archive):
    value = {"state_dict": {"a": torch.zeros(2)}, "hook": Payload(tmp_path / "witness")}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    assert "contains code, which was not run" in message(tmp_path / "x.pth")
    assert not (tmp_path / "witness").exists()


def test_bare_pickle_is_not_run(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Payload(tmp_path / "witness")))
    message(tmp_path / "x.pth")
    assert not (tmp_path / "witness").exists()


HISTORY_BUFFER = """
import collections, pathlib
import numpy as np

class HistoryBuffer:
    _statistics_methods = collections.OrderedDict()

    def __init__(self):
        self._log_history, self._count_history, self.max_length = np.ones(3), np.ones(3, int), 100
        self._statistics_methods["min"] = HistoryBuffer.min

    def min(self):
        return self._log_history.min()

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": self._statistics_methods}

    def __setstate__(self, state):
        pathlib.Path(WITNESS).touch()
"""


@pytest.fixture
def mmengine(tmp_path, monkeypatch):
    """Modules that pickle as mmengine's log does; what reads them back runs code that leaves a witness."""
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    modules = {name: types.ModuleType(name) for name in names}
    buffer = modules[names[-1]]
    buffer.WITNESS = str(tmp_path / "witness")
    exec(compile(HISTORY_BUFFER, names[-1], "exec"), buffer.__dict__)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return buffer


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_training_checkpoint_of_mmengine(tmp_path, mmengine, installed, archive, monkeypatch):
    """Its log is passed over, whether mmengine is there or not, and none of its code is run."""
    hub = {"log_scalars": {"train/loss": mmengine.HistoryBuffer()}, "runtime_info": {"loss": np.float64(2)}}
    state = {"decode_head.cls_embed.bias": torch.arange(3.0)}
    value = {"meta": {"epoch": 20, "cfg": "model = dict()"}, "state_dict": state, "message_hub": hub,
             "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}}  # fmt: skip
    torch.save(value, tmp_path / "epoch_20.pth", _use_new_zipfile_serialization=archive)
    if not installed:
        for name in [name for name in sys.modules if name.startswith("mmengine")]:
            monkeypatch.delitem(sys.modules, name)
    weights = open_weight_file(tmp_path / "epoch_20.pth")
    assert set(weights) == set(state)
    np.testing.assert_array_equal(weights["decode_head.cls_embed.bias"], np.arange(3))
    assert not (tmp_path / "witness").exists()


def test_placeholder_classes_run_no_code(tmp_path):
    """A file that would look up a method and call it through the names that are let through."""
    # getattr(numpy.ndarray, "tofile")(witness), written by hand
    called = b"\x80\x02c__builtin__\ngetattr\ncnumpy\nndarray\nX\x07\x00\x00\x00tofile\x86RX%b%b\x85R."
    place = str(tmp_path / "witness").encode()
    (tmp_path / "y.pth").write_bytes(called % (len(place).to_bytes(4, "little"), place))
    message(tmp_path / "y.pth")
    assert not (tmp_path / "witness").exists()


def test_legacy_torch_files(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(open_weight_file(tmp_path / "x.pth")["a"], np.ones(3))


def test_without_torch(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch" in message(tmp_path / "x.pth")


def folder(path, shards=("one.safetensors",)):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "x"}))
    if shards == ("one.safetensors",):
        save_file(TENSORS, path / "model.safetensors")
        return path
    table = {}
    for number, shard in enumerate(shards):
        save_file({f"t{number}": TENSORS["a"] + number}, path / shard)
        table[f"t{number}"] = shard
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return path


def test_folders(tmp_path):
    weights = open_weight_file(folder(tmp_path / "whole"))
    assert weights.config == {"model_type": "x"}
    assert set(weights) == set(TENSORS)
    sharded = folder(tmp_path / "sharded", ("a-1.safetensors", "a-2.safetensors"))
    np.testing.assert_array_equal(open_weight_file(sharded)["t1"], TENSORS["a"] + 1)
    (sharded / "a-2.safetensors").unlink()
    assert "the shard a-2.safetensors" in message(sharded)
    (tmp_path / "whole" / "model.safetensors").unlink()
    assert "has a config.json but no weights" in message(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").unlink()
    assert "has no config.json" in message(tmp_path / "whole")


def test_sharded_folder_of_torch(tmp_path):
    """pytorch_model.bin in pieces, as older repositories have it."""
    (tmp_path / "config.json").write_text("{}")
    table = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    for name, shard in table.items():
        torch.save({name: torch.from_numpy(TENSORS[name])}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    weights = open_weight_file(tmp_path)
    assert {name: weights[name].tolist() for name in weights} == {k: v.tolist() for k, v in TENSORS.items()}
    assert [file.name for file in weights.paths] == sorted(table.values())
    (tmp_path / "pytorch_model-2.bin").unlink()
    assert "the shard pytorch_model-2.bin, which pytorch_model.bin.index.json names" in message(tmp_path)


FILES = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's client, and a hub that nobody reaches."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "https://hub.invalid" + FILES)
    return tmp_path / "cache"


def put_in_cache(cache, repository, shards=("one.safetensors",)):
    root = cache / ("models--" + repository.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    return folder(root / "snapshots" / "c0ffee", shards)


def test_hub_from_the_cache(cache):
    where = put_in_cache(cache, "lab/encoder")
    weights = open_weight_file("hf://lab/encoder")
    assert weights.spec == "hf://lab/encoder"
    np.testing.assert_array_equal(weights["a"], TENSORS["a"])
    assert open_weight_file("hf://lab/encoder@c0ffee").paths == (where / "model.safetensors",)
    assert set(open_weight_file("hf://lab/encoder/model.safetensors")) == set(TENSORS)
    put_in_cache(cache, "lab/sharded", ("a-1.safetensors", "a-2.safetensors"))
    assert set(open_weight_file("hf://lab/sharded")) == {"t0", "t1"}


def test_hub_without_network(cache):
    start = time.monotonic()
    text = message("hf://lab/encoder")
    assert time.monotonic() - start < 5
    for part in ("hf://lab/encoder", "config.json and model.safetensors", "by hand", "path of that folder"):
        assert part in text
    assert "download model.ckpt of lab/encoder by hand" in message("hf://lab/encoder/model.ckpt")
    where = put_in_cache(cache, "lab/half", ("a-1.safetensors", "a-2.safetensors"))
    (where / "a-2.safetensors").unlink()
    assert "out of reach" in message("hf://lab/half")


SLOW_LOOKUP = """
import socket, sys, time

def lookup(*_, **__):
    time.sleep(60)
    raise socket.gaierror("no answer")

socket.getaddrinfo = lookup
"""
COMMAND = """
from spectralmoe_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
CONVERT = ("convert", "hf://lab/encoder", "x.safetensors")
TRAIN = (
    "train",
    "--config",
    "configs/fbp_cross_sensor.py",
    "--workdir",
    "x",
    "--config.model.visual.weights=hf://lab/encoder",
)


def out_of_reach(tmp_path, arguments=CONVERT, before="import sys", **variables):
    """Seconds that the whole command takes, in a process of its own, to say that the hub is out of reach."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    environment = {k: v for k, v in os.environ.items() if k.upper() not in names}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "https://hub.invalid", **variables}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", before + COMMAND, *arguments], env=environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    seconds = time.monotonic() - start
    assert done.returncode == 2, done.stderr
    assert "not in the local cache, and the hub is out of reach; download config.json and" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return seconds


@pytest.fixture
def mute_proxy():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("arguments", [CONVERT, TRAIN])
def test_command_without_network(arguments, tmp_path):
    assert out_of_reach(tmp_path, arguments) < 5


@pytest.mark.parametrize("arguments", [CONVERT, TRAIN])
def test_command_behind_an_unresponsive_proxy(arguments, tmp_path, mute_proxy):
    assert out_of_reach(tmp_path, arguments, HTTPS_PROXY=mute_proxy, HTTP_PROXY=mute_proxy) < 5


def test_command_whose_name_lookup_hangs(tmp_path):
    assert out_of_reach(tmp_path, before=SLOW_LOOKUP) < 5


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, for the files in `files`."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        repository, _, name = self.path.lstrip("/").partition("/resolve/main/")
        content = self.files.get(name) if repository == "lab/encoder" else None
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0de")
        self.send_header("ETag", f'"{hashlib.sha1(name.encode()).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def served(cache, monkeypatch):
    """A hub on this machine that holds the files put into the dictionary."""
    from huggingface_hub import constants

    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + FILES)
        yield Hub.files
        server.shutdown()


@pytest.mark.parametrize("kind", ["whole", "sharded", "torch"])
def test_hub_folder_is_downloaded_once(kind, served, tmp_path):
    shards = ("a-1.safetensors", "a-2.safetensors") if kind == "sharded" else ("one.safetensors",)
    place = folder(tmp_path / "folder", shards)
    if kind == "torch":
        (place / "model.safetensors").unlink()
        torch.save({"a": torch.ones(2)}, place / "pytorch_model-1.bin")
        (place / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    served |= {file.name: file.read_bytes() for file in place.iterdir()}
    wanted = open_weight_file(place)
    found = open_weight_file("hf://lab/encoder")
    assert {name: found[name].tolist() for name in found} == {n: wanted[n].tolist() for n in wanted}
    served.clear()
    assert set(open_weight_file("hf://lab/encoder")) == set(wanted)


def test_hub_repository_without_weights(served):
    served["promptda_vitl.ckpt"] = b"x"
    text = message("hf://lab/encoder")
    assert "has no config.json" in text
    assert "name a file that it has: hf://lab/encoder/FILE" in text
    assert "hf://lab/encoder: has no other.ckpt; name a file" in message("hf://lab/encoder/other.ckpt")


def test_a_bad_hub_name():
    assert "write hf://owner/name" in message("hf://encoder")
