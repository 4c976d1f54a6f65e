"""The options by which a subcommand joins other processes, on this host or on others."""

import contextlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator


def add_process_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("several processes (found by themselves on SLURM, JobSet and TPU VMs)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    group.add_argument("--start-timeout", type=int, default=300, metavar="SECONDS",
                       help="give up where they have not met by then (default: 300)")  # fmt: skip


@contextlib.contextmanager
def all_processes(arguments: Namespace) -> Iterator[None]:
    """Together with the run's other processes, if the command line or the environment tells of any."""
    from spectralmoe_jax.parallel.start import find_start, joined

    start = find_start(os.environ, arguments.coordinator, arguments.processes, arguments.process_id)
    with joined(start, arguments.start_timeout):
        yield
