"""Shared by all tests: the folders of data, the order of files, and a quiet, cached, CPU-only JAX."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _prepare_environment() -> None:
    """Set what JAX and the numerical libraries read when they are first imported.

    Set as environment variables, so that processes started by a test inherit them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        cache = Path(tempfile.gettempdir())
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "spectralmoe_jax" / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small programs are many
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = _quick_compilation()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC"):
            os.environ.setdefault(variable, threads)


def _quick_compilation() -> str:
    """The models are tiny: tests wait for the compiler, not for what it compiles.

    XLA's older way with fused loops takes little more than half of the newer one's time to compile them. A
    flag that an XLA does not know ends the process, so that another process tries.
    """
    quick = "--xla_backend_optimization_level=0"
    quicker = f"{quick} --xla_cpu_use_fusion_emitters=false"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": quicker},
            capture_output=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return quick
    return quicker if tried.returncode == 0 else quick


_prepare_environment()
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    # In the background or below nohup they are ignored, which programs that tests start would inherit.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else lambda *_: None)

# pytest-xdist gives a worker one file at a time: with the longest first, no worker waits long for the other.
LONGEST_FILES = (
    "cli/test_end_to_end.py",
    "cli/test_every_config.py",
    "checkpoints/test_old_run.py",
    "parallel/test_mesh.py",
    "loading/test_every_source.py",
    "models/test_segmenter.py",
    "ablation/test_ablate.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, in the order of `LONGEST_FILES`."""
    order = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of reference values that travels with the tests."""
    return ROOT / "tests" / "goldens"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference material that lies beside the project on some machines."""
    path = ROOT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip("needs ../shared/reference, which this machine does not have")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery that lies beside the project on some machines."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the imagery in ../shared/data, which this machine does not have")
    return path
