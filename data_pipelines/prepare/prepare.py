"""Preparation of a published data set (`spectralmoe prepare`): downloaded files in, tiles to train on out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from data_pipelines.datasets import Dataset, get_dataset
from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import VERSION
from data_pipelines.prepare.contact_sheet import write_contact_sheet
from data_pipelines.prepare.cut import cut_pieces
from data_pipelines.prepare.plan import Plan, Workspace, difference, list_downloads, make_plan
from data_pipelines.prepare.progress import ProgressReport
from data_pipelines.prepare.statistics import write_metadata
from data_pipelines.readers.prepared import UNFINISHED
from data_pipelines.readers.prepared_files import read_statistics
from data_pipelines.sheet import counted
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.files import read_json


def prepare(
    dataset: str | Dataset,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    partial: bool = False,
    compress: bool = False,
    console: Console | None = None,
) -> Path:
    """Cut a published data set into tiles, in ArrayRecord shards for `PreparedTiles` and TensorFlow Datasets.

    The tiles are in `<out>/<name>/<version>`, a folder that appears when it is complete. Until then, the work
    is in a folder beside it that ends in `.incomplete`. After an interruption of any kind, the same call
    continues with the unfinished pieces. The result has the same bytes as without interruption, for any
    number of workers.

    With workers, call it below `if __name__ == "__main__":` in a script, because new processes import the
    script.

    Args:
      dataset: a name from `data_pipelines.datasets.DATASETS`, or a data set of your own.
      source: the download folder, with unpacked files; it is only read.
      out: the folder to write below.
      workers: number of processes; default one for each CPU, 0 for none but this one.
      partial: prepare the files that are there although others are missing.
      compress: make shards smaller, by a fifth to two fifths, and several times slower to read.
      console: where to report; default standard output.

    Returns:
      The folder of the prepared tiles.

    Raises:
      UserError: an unknown data set, files missing, unreadable or changed since an earlier call cut them, a
        damaged archive beside them, another call at work in the same folder, or a folder that cannot be
        written.
    """
    report = ProgressReport(console)
    dataset = get_dataset(dataset) if isinstance(dataset, str) else dataset
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 0:
        raise bad_value("--workers", workers, "must be at least 0 processes")
    downloads, home = Path(source), Path(out) / dataset.name
    if home.resolve().is_relative_to(downloads.resolve()):
        raise UserError(f"{home}: is in the --source folder {downloads}, choose an --out outside of it")
    # 1. list the files, and plan the pieces
    with report.busy("looking at the files"):
        pairs, missing = list_downloads(dataset, downloads)
    report.missing(missing)
    if missing and not partial:
        raise UserError(
            f"{downloads}: files of {dataset.title} are missing; download: {dataset.download.rstrip('.')}; "
            "or add --partial to prepare what is there"
        )
    with report.busy(f"reading the headers of {counted(len(pairs), 'image')}"):
        plan = make_plan(dataset, downloads, pairs, compress)
    # 2. cut the pieces, unless an earlier call did
    final = home / VERSION
    working = final.with_name(final.name + UNFINISHED)
    if final.exists():
        _check_same(final, downloads, plan)
        shutil.rmtree(working, ignore_errors=True)  # an earlier call may have been killed just before this
        report.say(f"{final} was prepared already")
    else:
        _check_archives(dataset, downloads, report)
        _prepare(dataset, plan, final, working, workers, report)
    # 3. report
    report.result(final)
    return final


def check(
    dataset: str | Dataset, source: str | os.PathLike[str], *, console: Console | None = None
) -> tuple[str, ...]:
    """Report the content of a download folder, and what is missing.

    Args:
      dataset: a name from `data_pipelines.datasets.DATASETS`, or a data set of your own.
      source: the download folder.
      console: where to report; default standard output.

    Returns:
      A line of text for each thing that is missing.

    Raises:
      UserError: an unknown data set, a folder without any of its files, or an archive in it whose MD5 is not
        the published one.
    """
    report = ProgressReport(console)
    dataset = get_dataset(dataset) if isinstance(dataset, str) else dataset
    pairs, missing = list_downloads(dataset, Path(source))
    for split in dataset.splits:
        found = [pair for pair in pairs if pair.split == split]
        domains = len({pair.domain for pair in found})
        report.say(f"{split}: {counted(len(found), 'image')} of {counted(domains, 'domain')}")
    report.missing(missing)
    report.say(f"download: {dataset.download}" if missing else "nothing is missing")
    _check_archives(dataset, Path(source), report)
    return missing


def _check_archives(dataset: Dataset, downloads: Path, report: ProgressReport) -> None:
    """Compare the archives that are still in the download folder with their MD5."""
    sizes = files.archive_sizes(downloads, dataset.checksums)
    if sizes:
        with report.reading(f"checking the md5 of {', '.join(sizes)}", sum(sizes.values())) as advance:
            files.check_archives(downloads, dataset.checksums, advance)


def _prepare(
    dataset: Dataset, plan: Plan, final: Path, working: Path, workers: int, report: ProgressReport
) -> None:
    """Continue with `working` until it is complete, and rename it to `final`."""
    workspace = Workspace.below(working)
    try:
        with _locked(working):
            _begin(workspace, working, plan)
            report.space(working, plan.size)
            todo = [piece for piece in plan.pieces if not workspace.finished(piece)]
            if len(todo) < len(plan.pieces):
                report.say(f"continuing with {working}")
            with report.cutting(plan, todo) as advance:
                cut_pieces(dataset, todo, workspace, workers, advance)
            with report.busy("describing the tiles"):
                statistics = write_metadata(dataset, final.name, plan, workspace)
                write_contact_sheet(dataset, workspace.shards, statistics)
            os.replace(workspace.shards, final)
            shutil.rmtree(working)
    except OSError as problem:
        raise UserError(
            f"{problem.filename or working}: cannot be written ({problem.strerror or problem}): "
            "make room or choose another --out"
        ) from problem


@contextmanager
def _locked(working: Path) -> Iterator[None]:
    """Refuse a second call on the same folder; the lock is released however the process ends."""
    working.mkdir(parents=True, exist_ok=True)
    with open(working / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise UserError(f"{working}: another prepare is at work here, let it finish") from problem
        yield


def _begin(workspace: Workspace, working: Path, plan: Plan) -> None:
    """Create the folders, and check that the pieces an earlier call finished belong to this plan."""
    shutil.rmtree(workspace.partial, ignore_errors=True)
    for folder in workspace:
        folder.mkdir(exist_ok=True)
    shards = {piece.shard for piece in plan.pieces}
    for path in workspace.shards.iterdir():
        if path.name not in shards:  # metadata of an earlier call that was killed while writing it
            path.unlink()
    listing = working / "files.json"
    if workspace.has_stale_notes(plan.pieces):
        before = read_json(listing, f"remove {working} to begin anew") if listing.is_file() else {}
        changed = difference(before, plan.files)
        raise UserError(
            f"{working}: holds tiles of files that changed since they were cut: "
            f"{changed or 'they are divided otherwise'}; undo the change, or remove {working} to begin anew"
        )
    aside = workspace.partial / listing.name
    aside.write_text(json.dumps(dict(plan.files)), encoding="utf-8")
    os.replace(aside, listing)


def _check_same(final: Path, downloads: Path, plan: Plan) -> None:
    """Raise UserError if `final` was prepared from other files or with other options."""
    before = read_statistics(final).get("source_fingerprint")
    if before != plan.fingerprint:
        raise UserError(
            f"{final}: was prepared from other files than {downloads} holds now, or with other options: "
            "remove it to prepare again, or choose another --out"
        )
