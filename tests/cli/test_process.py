"""The process of a command: platforms that cannot be, closed streams, missing homes, signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax import quick_start
from spectralmoe_jax.cli import platform
from spectralmoe_jax.cli.main import main
from tests.tiny_run import SIZES

ROOT = Path(__file__).parents[2]
SPECTRALMOE = [sys.executable, "-m", "spectralmoe_jax"]
TINY = ["--config", "quickstart", *(f"--config.{value}" for value in SIZES)]
# A command that does nothing but begin JAX.
BEGIN = """
import sys, types
from spectralmoe_jax.cli import main
class Begin:
    "Begin JAX."
    add_arguments = staticmethod(lambda parser: None)
    @staticmethod
    def run(arguments, overrides):
        import jax
        print(jax.default_backend())
        return 0
sys.modules["spectralmoe_jax.cli.begin"] = types.SimpleNamespace(Begin=Begin)
main.COMMANDS["begin"] = ("begin", "")
sys.argv[1:] = ["begin"]
sys.exit(main.main())
"""


def run(command, **environment):
    told = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    told = told | {"PYTHONPATH": str(ROOT), **environment}
    told = {name: value for name, value in told.items() if value is not None}
    return subprocess.run(
        command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("JAX_PLATFORMS", "banana", "JAX_PLATFORMS = banana: JAX cannot start on this machine ("),
        ("JAX_ENABLE_X64", "banana", "JAX does not take a variable of the environment ("),
        ("XLA_FLAGS", "--banana", "XLA_FLAGS = --banana: XLA does not take it (--banana)"),
        ("XLA_FLAGS", "/none", "XLA_FLAGS = /none: XLA does not take it"),
        ("XLA_FLAGS", " ", "XLA_FLAGS =  : XLA does not take it"),
    ],
)
def test_a_platform_that_cannot_be_is_one_line(name, value, expected):
    done = run([sys.executable, "-c", BEGIN], **{"JAX_PLATFORMS": "cpu", name: value})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"error: {expected}")


@pytest.mark.slow
@pytest.mark.parametrize("named", ["cuda", "tpu", "cpu,banana"])
@pytest.mark.parametrize(
    "words", [["params", *TINY], ["verify", "tests/goldens"], ["evaluate", "--workdir", "none"]]
)
def test_every_command_refuses_a_platform_in_one_line(words, named):
    """A machine that has the platform does what the command says."""
    done = run([*SPECTRALMOE, *words], JAX_PLATFORMS=named)
    assert done.returncode in (0, 2), done.stderr
    assert done.stderr.count("\n") == (1 if done.returncode else 0), done.stderr


def test_libraries_of_accelerators_that_are_not_here_are_silent(tmp_path):
    """The libraries are stand-ins that print when they are loaded, as the real ones do."""
    if Path("/dev/nvidia0").exists() or list(Path("/dev").glob("accel*")):
        pytest.skip("this machine has an accelerator")
    for place in ("libtpu", "jax_plugins/xla_cuda12", "jax_cuda12_plugin"):
        (tmp_path / place).mkdir(parents=True)
        noise = "import sys\nprint('loaded', __name__, file=sys.stderr)\n"
        quiet = "def get_library_path():\n    return '/none/libtpu.so'\n"
        (tmp_path / place / "__init__.py").write_text(quiet if place == "libtpu" else noise)
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = run([sys.executable, "-c", BEGIN], **path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
    for name, what in (("tpu", "this machine has no TPU"), ("cuda", "no NVIDIA driver is here")):
        done = run([sys.executable, "-c", BEGIN], **path, JAX_PLATFORMS=name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: JAX_PLATFORMS = {name}: {what}")


def test_flags_of_xla_print_nothing():
    flags = "--xla_backend_optimization_level=0"
    done = run([sys.executable, "-c", BEGIN], XLA_FLAGS=flags, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL=None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")


def test_a_check_of_flags_that_hangs_is_given_up(monkeypatch):
    """The child has a copy of each lock, and no thread that frees it."""
    from jaxlib import xla_client

    monkeypatch.setattr(xla_client, "CompileOptions", lambda: time.sleep(60))
    monkeypatch.setattr(platform, "_LONGEST_CHECK", 1)
    begin = time.monotonic()
    platform._check_flags("--xla_backend_optimization_level=0")
    assert time.monotonic() - begin < 30


def test_of_several_tasks_that_fail_one_is_the_error():
    """The others, which nobody waits for, print nothing."""
    tasks = """
        import asyncio, gc
        from spectralmoe_jax.errors import UserError
        async def fail():
            raise UserError("x: damaged")
        async def read():
            _, second = asyncio.create_task(fail()), asyncio.create_task(fail())
            fail()
            await second
        class Reading:
            def __del__(self):
                raise RuntimeError("Event loop is closed")
        reading = Reading()
        del reading
        try:
            asyncio.run(read())
        finally:
            gc.collect()
"""
    done = run([sys.executable, "-c", BEGIN.replace("        import jax\n", tasks)])
    assert (done.returncode, done.stderr) == (2, "error: x: damaged\n")


def test_shared_memory_that_is_left_is_freed_in_silence():
    leaves = """
        from multiprocessing.shared_memory import SharedMemory
        from spectralmoe_jax.cli.signals import leave
        print(SharedMemory(create=True, size=10).name)
        leave(130, "error: interrupted")
"""
    done = run([sys.executable, "-c", BEGIN.replace("        import jax\n", leaves)])
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    assert not Path("/dev/shm", done.stdout.strip()).exists()


HELP = f"{sys.executable} -m spectralmoe_jax --help"
UNKNOWN = rf'{sys.executable} -m spectralmoe_jax "$(printf "\033[2J\n\303\244\342\200\256x")"'


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (f"{HELP} >&-", 0, ""),
        (f"{HELP} 2>&- >/dev/null", 0, ""),
        (f"{HELP} <&- >&- 2>&-", 0, ""),
        (f"{HELP} >/dev/full", 2, "No space left on device\n"),
        (f"{UNKNOWN} 2>&-", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(command, status, said):
    done = run(["bash", "-c", command])
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == said.count("\n")
    assert done.stderr.endswith(said)


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": None},
        {"HOME": "/none", "TMPDIR": "/none", "TERM": "dumb", "NO_COLOR": "1"},
        {"HOME": "/proc", "TERM": None, "COLUMNS": "0"},
    ],
)
def test_odd_environments(environment):
    done = run(["bash", "-c", UNKNOWN], **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: unknown subcommand '\\x1b[2J\\n")
    assert not {"\x1b", "\u202e"} & set(done.stderr)


@pytest.mark.parametrize("name", ["predict", "config"])
def test_help_without_docstrings(name):
    done = run([*SPECTRALMOE, name, "--help"], PYTHONOPTIMIZE="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--" in done.stdout


def test_a_warning_of_a_library_is_one_line():
    warns = "import warnings; warnings.warn('a\\x1b[2J\\nb')"
    done = run([sys.executable, "-c", BEGIN.replace("import jax\n", f"import jax; {warns}\n")])
    assert (done.returncode, done.stderr) == (0, "warning: a\\x1b[2J\\nb\n")


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [("SIGINT", 130, "error: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 143, "")],
)
def test_a_signal_while_a_checkpoint_is_read(name, status, said, tmp_path):
    """Orbax takes an exception there for that of a task: it is lost, or the checkpoint is called damaged."""
    reads = f"""
        from pathlib import Path
        from spectralmoe_jax.cli.maps import _ending_in_order
        from spectralmoe_jax.part_files import hidden_part
        code = "import os, signal; os.kill(os.getpid(), signal.{name})"
        task = compile(code, "/x/orbax/checkpoint/io.py", "exec")
        with _ending_in_order(), hidden_part(Path({str(tmp_path)!r}, "map.tif")) as part:
            part.write_text("half")
            try:
                exec(task)
            except BaseException as error:
                raise ValueError("damaged") from error
"""
    done = run([sys.executable, "-c", BEGIN.replace("        import jax\n", reads + "        import jax\n")])
    assert (done.returncode, done.stderr) == (status, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_the_only_process_of_a_container(name):
    """The kernel ignores signals of the first process of a container that it does not handle."""
    alone = ["unshare", "--user", "--map-root-user", "--fork", "--pid"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process have numbers of its own")
    waits = f"import os, signal, time; os.kill(1, signal.{name}); time.sleep(20)"
    done = run([*alone, sys.executable, "-c", BEGIN.replace("import jax\n", f"{waits}; import jax\n")])
    assert (done.returncode, done.stdout) == (143, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"HOME": None}, {"HOME": "/proc", "TMPDIR": "/none"}, {"TERM": "dumb"}],
)
def test_a_training_in_odd_environments(environment, tmp_path):
    words = [*TINY, "--config.train.steps=2", "--config.name=wäld[/b]", "--workdir"]
    done = run(
        [*SPECTRALMOE, "train", *words, str(tmp_path / "\u202erun")], JAX_PLATFORMS="cpu", **environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\u202e" not in done.stdout + done.stderr


def test_a_quickstart_whose_training_is_asked_to_stop_ends_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quick_start, "train", lambda config, workdir: {"step": config.train.steps - 1})
    assert main(["quickstart", "--workdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "line"),
    [
        ("SIGINT", 130, "error: interrupted\n"),
        ("SIGTERM", 0, "stopped before the first step: the same command starts again\n"),
    ],
)
def test_a_signal_at_any_time_of_the_start(name, status, line, tmp_path):
    """While it imports, reads, compiles and trains: the status, and one line."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    for number, seconds in enumerate(np.random.default_rng(0).uniform(0.02, 12, 20)):
        words = ["train", *TINY, "--config.train.steps=20", "--workdir", str(tmp_path / str(number))]
        process = subprocess.Popen(
            [*SPECTRALMOE, *words], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=120)
        was_done = process.returncode == 0 and not err and "step" in out
        # Python itself starts, and ends in silence or with a traceback of its own
        was_early = process.returncode in (status, -getattr(signal, name)) and (
            not err or (seconds < 0.5 and "KeyboardInterrupt" in err)
        )
        assert (process.returncode, err) == (status, line) or was_done or was_early, (seconds, err)
