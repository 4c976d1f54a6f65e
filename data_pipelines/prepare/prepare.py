"""`spectralmoe prepare`: a folder of downloaded files in, tiles that are ready to train on out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from data_pipelines.datasets import (
    BENCHMARKS,
    Benchmark,
    get_benchmark,
)
from data_pipelines.datasets import (
    downloaded_files as files,
)
from data_pipelines.prepare.cut import Workspace, stale_notes
from data_pipelines.prepare.plan import Plan, difference, list_source, make_plan
from data_pipelines.prepare.summary import Report
from data_pipelines.readers.prepared import UNFINISHED
from data_pipelines.sheet import counted
from spectralmoe_jax.errors import UserError

_SHOWN = 20  # lines about missing files


def prepare(
    benchmark: str | Benchmark,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    partial: bool = False,
    compress: bool = False,
    console: Console | None = None,
) -> Path:
    """Cuts a benchmark into tiles, in ArrayRecord shards that TensorFlow Datasets and `PreparedTiles` read.

    Everything lies in `<out>/<benchmark>/<version>`, which appears when it is complete. Until then the work
    is in a folder beside it that ends in `.incomplete`; after an interruption, of whatever kind, the same
    call goes on with the pieces that are not finished, and the result has the same bytes as an undisturbed
    one, for any number of workers.

    With workers, call it below `if __name__ == "__main__":` in a script, as new processes import the script.

    Args:
      benchmark: its name, of `data_pipelines.datasets.BENCHMARKS`, or one of your own.
      source: the folder of the downloaded, unpacked files; it is only read.
      out: the folder to write below.
      workers: processes; default one for each CPU, 0 for none but this one.
      partial: prepare what is there although published files are missing.
      compress: make shards smaller, by a fifth to two fifths; reading them takes several times as long.
      console: where to report; standard output by default.

    Returns:
      The folder of the prepared tiles.

    Raises:
      UserError: an unknown benchmark, files missing or unreadable, a source that changed since an earlier
        call cut it, a damaged archive beside them, another call at work in the same folder, or a folder
        that cannot be written.
    """
    report = Report(console)
    benchmark = get_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 0:
        raise UserError(f"--workers {workers}: give 0 or more processes")
    source, home = Path(source), Path(out) / benchmark.name
    if home.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{home}: lies in the source folder {source}, choose an --out outside of it")
    with report.busy("looking at the files"):
        pairs, missing = list_source(benchmark, source)
    report.missing(missing)
    if missing and not partial:
        raise UserError(
            f"{source}: files of {benchmark.title} are missing; download: {benchmark.download.rstrip('.')}; "
            "or add --partial to prepare what is there"
        )
    with report.busy(f"reading the headers of {counted(len(pairs), 'image')}"):
        plan = make_plan(benchmark, source, pairs, compress)
    final = home / _version(benchmark)
    working = final.with_name(final.name + UNFINISHED)
    if final.exists():
        _check_same(final, source, plan)
        shutil.rmtree(working, ignore_errors=True)  # an earlier call may have been ended before doing so
        report.say(f"{final} was prepared already")
    else:
        _check_archives(benchmark, source, report)
        _prepare(benchmark, plan, final, working, workers, report)
    report.result(final)
    return final


def check(
    benchmark: str | Benchmark, source: str | os.PathLike[str], *, console: Console | None = None
) -> tuple[str, ...]:
    """Reports what a source folder holds and what is missing; returns the latter, a line each.

    Raises:
      UserError: an unknown benchmark, a folder without any of its files, or an archive in it whose md5 is not
        the published one.
    """
    report = Report(console)
    benchmark = get_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    pairs, missing = list_source(benchmark, Path(source))
    for split in benchmark.splits:
        found = [pair for pair in pairs if pair.split == split]
        domains = len({pair.domain for pair in found})
        report.say(f"{split}: {counted(len(found), 'image')} of {counted(domains, 'domain')}")
    report.missing(missing)
    report.say(f"download: {benchmark.download}" if missing else "nothing is missing")
    _check_archives(benchmark, Path(source), report)
    return missing


def _check_archives(benchmark: Benchmark, source: Path, report: Report) -> None:
    """Compares the downloaded archives that still lie in the source folder with their md5."""
    sizes = files.archives(source, benchmark.checksums)
    if sizes:
        with report.reading(f"checking the md5 of {', '.join(sizes)}", sum(sizes.values())) as advance:
            files.check_archives(source, benchmark.checksums, advance)


def _prepare(
    benchmark: Benchmark, plan: Plan, final: Path, working: Path, workers: int, report: Report
) -> None:
    """Goes on with `working` until all is there, and makes `final` of it."""
    from data_pipelines.prepare.contact_sheet import write_contact_sheet
    from data_pipelines.prepare.finish import finish
    from data_pipelines.prepare.workers import cut_pieces

    workspace = Workspace.below(working)
    try:
        with _locked(working):
            _begin(workspace, working, plan)
            report.space(working, plan.size)
            todo = [piece for piece in plan.pieces if not workspace.finished(piece)]
            if len(todo) < len(plan.pieces):
                report.say(f"going on with {working}")
            with report.cutting(plan, todo) as advance:
                cut_pieces(benchmark, todo, workspace, workers, advance)
            with report.busy("describing the tiles"):
                statistics = finish(benchmark, final.name, plan, workspace)
                write_contact_sheet(benchmark, workspace.shards, statistics)
            os.replace(workspace.shards, final)
            shutil.rmtree(working)
    except OSError as problem:
        raise UserError(
            f"{problem.filename or working}: cannot be written ({problem.strerror or problem}): "
            "make room or choose another --out"
        ) from problem


@contextmanager
def _locked(working: Path) -> Iterator[None]:
    """Keeps a second call off; the lock goes with the process, however it ends."""
    working.mkdir(parents=True, exist_ok=True)
    with open(working / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise UserError(f"{working}: another prepare is at work here, let it finish") from problem
        yield


def _begin(workspace: Workspace, working: Path, plan: Plan) -> None:
    """Makes the folders, and sees that what an earlier call finished is part of this plan."""
    shutil.rmtree(workspace.partial, ignore_errors=True)
    for folder in workspace:
        folder.mkdir(exist_ok=True)
    shards = {piece.shard for piece in plan.pieces}
    for path in workspace.shards.iterdir():
        if path.name not in shards:  # of an earlier call that was ended while it described what was there
            path.unlink()
    listing = working / "files.json"
    if stale_notes(workspace, plan.pieces):
        before = json.loads(listing.read_text()) if listing.is_file() else {}
        changed = difference(before, plan.files)
        raise UserError(
            f"{working}: holds tiles of files that changed since they were cut: "
            f"{changed or 'they are divided otherwise'}; undo the change, or remove {working} to begin anew"
        )
    aside = workspace.partial / listing.name
    aside.write_text(json.dumps(dict(plan.files)))
    os.replace(aside, listing)


def _check_same(final: Path, source: Path, plan: Plan) -> None:
    try:
        before = json.loads((final / "statistics.json").read_text())["source_fingerprint"]
    except (OSError, ValueError, KeyError):
        before = None
    if before != plan.fingerprint:
        raise UserError(
            f"{final}: was prepared from other files than {source} holds now, or with other options: "
            "remove it to prepare again, or choose another --out"
        )


def _version(benchmark: Benchmark) -> str:
    from data_pipelines.datasets.builder import BenchmarkBuilder, builder_class

    builder = builder_class(benchmark.name) if benchmark.name in BENCHMARKS else BenchmarkBuilder
    return str(builder.VERSION)
