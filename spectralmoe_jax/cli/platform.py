"""Refusals of the platform: what JAX and XLA do not take is one line, as any other bad input."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

from spectralmoe_jax.errors import UserError

_CUDA = {"jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"}
_GOOGLE, _STORAGE_AND_NETWORK = "0x1ae0", ("0x01", "0x02")
_LONGEST = 200  # characters of what a library says, in a message
_LONGEST_CHECK = 20  # seconds
_FLAG = re.compile(r"(?:Unknown flags? in XLA_FLAGS|Couldn't parse[^:]*|Failed to parse[^:]*): *(.*)")


def check_platform(environment: MutableMapping[str, str] = os.environ) -> None:
    """Refuse what would end the process later; call it before JAX is imported.

    XLA ends the process at a flag that it does not know. A library for an absent accelerator prints
    a page before JAX falls back to the CPU, so JAX is kept from loading it.

    Raises:
      UserError: `XLA_FLAGS` or `JAX_PLATFORMS` cannot be.
    """
    asked = environment.get("JAX_PLATFORMS", "")
    platforms = asked.split(",")
    if environment.get("XLA_FLAGS") and "jax" not in sys.modules:
        _check_flags(environment["XLA_FLAGS"])
    plugins = _plugins()
    if plugins & _CUDA and not _has_cuda():
        if {"cuda", "gpu"} & set(platforms):
            raise UserError(f"JAX_PLATFORMS = {asked}: no NVIDIA driver is here; unset it, or give cpu")
        for name in plugins & _CUDA:
            hidden: dict[str, Any] = {name: None, f"{name.replace('jax_plugins.xla', 'jax')}_plugin": None}
            sys.modules.update(hidden)
        plugins -= _CUDA
    if importlib.util.find_spec("libtpu") is not None and not _has_tpu():
        if "tpu" in platforms:
            raise UserError(f"JAX_PLATFORMS = {asked}: this machine has no TPU; unset it, or give cpu")
        if not asked and not plugins:
            environment["JAX_PLATFORMS"] = "cpu"
    logging.getLogger("jax._src.xla_bridge").addFilter(_one_line)


def is_about_memory(error: BaseException | None) -> bool:
    """Return whether a library said, in an error of its own kind, that it cannot get more memory."""
    while error is not None:
        name, said = type(error).__name__, str(error)
        if name in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in said:
            return True
        if isinstance(error, MemoryError) or (name == "error" and "Insufficient memory" in said):  # OpenCV's
            return True
        error = error.__cause__
    return False


def platform_problem(error: Exception) -> str | None:
    """Return the message for an error of JAX about its platform or its variables; None for any other."""
    said = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS=")[0][:_LONGEST]
    if _was_raised_in(error.__traceback__, ("jax", "_src", "xla_bridge.py")):
        asked = os.environ.get("JAX_PLATFORMS", "")
        shown = f"JAX_PLATFORMS = {asked}" if asked else "JAX"
        said = said or "nothing of that kind is here"
        return f"{shown}: JAX cannot start on this machine ({said}); see JAX_PLATFORMS and XLA_FLAGS"
    if _was_raised_in(error.__traceback__, ("jax", "_src", "config.py")):
        return f"JAX does not take a variable of the environment ({said}): correct or unset it"
    return _problem_of_devices() if "jax" in sys.modules else None


def _problem_of_devices() -> str | None:
    """Return the message if JAX has no device, which can show as an error of another kind; None if it has."""
    import jax

    try:
        jax.devices()
    except Exception as error:
        if _was_raised_in(error.__traceback__, ("jax", "_src", "xla_bridge.py")):
            return platform_problem(error)
    return None


def _was_raised_in(traceback: TracebackType | None, file: tuple[str, ...]) -> bool:
    while traceback is not None:
        if Path(traceback.tb_frame.f_code.co_filename).parts[-len(file) :] == file:
            return True
        traceback = traceback.tb_next
    return False


def _check_flags(flags: str) -> None:
    """Let a child process read `XLA_FLAGS`, which it may not survive.

    Raises:
      UserError: it did not.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # JAX's, which XLA reads when it is loaded
    from jaxlib import xla_client  # of what JAX needs anyway; not for --help

    if not hasattr(os, "fork"):
        return
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of processes with threads; the child uses none
        child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST_CHECK)  # a thread of the parent may have held a lock when it was copied
            os.dup2(write, 1)
            os.dup2(write, 2)
            xla_client.CompileOptions()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as output:
        said = output.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM):
        found = _FLAG.search(said)
        reason = f" ({found[1][:_LONGEST]})" if found else ""
        raise UserError(f"XLA_FLAGS = {flags}: XLA does not take it{reason}; correct or unset it")


def _plugins() -> set[str]:
    """Return the modules of the plugins for accelerators that JAX would load."""
    found = {entry.value for entry in importlib.metadata.entry_points(group="jax_plugins")}
    package = importlib.util.find_spec("jax_plugins")
    places = package.submodule_search_locations if package is not None else None
    return found | {f"jax_plugins.{module.name}" for module in pkgutil.iter_modules(places or [])}


def _has_cuda() -> bool:
    """Return whether the driver's library is here, which comes with the driver alone."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _has_tpu() -> bool:
    """Return whether a chip is in this machine, by its device file or as a device on the bus."""
    if list(Path("/dev").glob("accel*")) or list(Path("/dev/vfio").glob("[0-9]*")):
        return True
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _GOOGLE and kind[:4] not in _STORAGE_AND_NETWORK:
            return True
    return False


def _one_line(record: logging.LogRecord) -> bool:
    """Keep the first line of what JAX says about platforms, and nothing about a hidden plugin."""
    record.msg, record.args = record.getMessage().split("\n")[0], ()
    record.exc_info = record.exc_text = None
    return not any(name in record.msg and sys.modules.get(name, name) is None for name in _CUDA)
