"""Reading a damaged input ends in the right value or an error of one line, soon, in little memory."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError

SECONDS = 20
MEMORY = 1 << 30  # bytes that one reading may add to the process
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def try_all(
    variants: Iterable[tuple[str, Any]],
    read: Callable[[Any], Any],
    is_exact: Callable[[Any, Any], bool],
    record: Callable[[str, object], None],
    name: str,
) -> Counter[str]:
    """Read every variant, and require that it is exact or refused in one line.

    Args:
      variants: pairs of what was done and the variant.
      read: reads a variant.
      is_exact: from (variant, what was read) whether that is what the variant says, by another way of reading
        it or because the format promises it.
      record: pytest's `record_property`; the counts are printed after the tests as a table.
      name: of the format, in that table.

    Returns:
      The number of variants by outcome, "exact" or "refused".
    """
    counts: Counter[str] = Counter(exact=0, refused=0)
    wrong = []
    for what, variant in variants:
        try:
            with _limits(what):
                found = read(variant)
            if is_exact(variant, found):
                counts["exact"] += 1
            else:
                wrong.append(f"{what}: read as something else without a word")
        except AssertionError:
            raise
        except (UserError, OSError) as error:
            lines = str(error).count("\n")
            if lines or not str(error):
                wrong.append(f"{what}: {lines + 1} lines: {str(error)[:300]}")
            counts["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    record("fuzzing", (name, sum(counts.values()), counts["exact"], counts["refused"]))
    assert not wrong, f"{len(wrong)} variants: " + "\n".join(wrong[:20])
    return counts


@contextmanager
def _limits(what: str) -> Iterator[None]:
    """Fail if the block takes longer than `SECONDS`, or adds more than `MEMORY` to the process."""

    def late(*_: object) -> None:
        raise AssertionError(f"{what}: not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    begin = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # of the limit of the whole test, if there is one
    base = _restart_peak()
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begin), 0.01) if left else 0)
        added = _peak() - base
    assert added <= MEMORY, f"{what}: took {added >> 20} MiB"


def _restart_peak() -> int:
    """Let the system count the peak of this process's memory anew, and return it, in bytes."""
    with suppress(OSError):  # not every system counts it
        _CLEAR.write_text("5")
    return _peak()


def _peak() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0
