"""Map many scenes with one model: find them, skip those that are done, and go on past those that fail.

A map carries a fingerprint of its model and the size of its scene. The same command therefore continues where
it was killed, and several processes can share a folder of maps, each with its own part of the scenes.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rasterio.errors import RasterioError
from rasterio.windows import Window
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_pipelines.readers.address import container_of, is_remote
from data_pipelines.readers.raster_file import open_as_stored
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.inference.polygons import DRIVERS, OUTLINES, Outlines
from spectralmoe_jax.inference.products import product_file
from spectralmoe_jax.inference.scene import open_scene, reading, scene_stem

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg")
"""Of the scenes that are looked for in a folder."""
_LIST = ".txt"
_MAP, _SCENE = "SPECTRALMOE_MODEL", "SPECTRALMOE_SCENE"  # metadata of a map
_OUTLINES = "SPECTRALMOE_OUTLINES"  # of its polygons, if there are any
_OURS = (_MAP, "CLASS_0")  # a map has at least one of them
_COMMENT = re.compile(r"(^|\s)#.*")
_GLOB = re.compile(r"[*?\[]")


class Job(NamedTuple):
    """A scene and the map to write.

    Attributes:
      scene: file, or a name that GDAL opens.
      output: GeoTIFF to write.
    """

    scene: str
    output: Path


class Outcome(NamedTuple):
    """What became of a scene.

    Attributes:
      job: the scene and its map.
      state: `mapped`, `done before` or `failed`.
      reason: one line on the failure; empty otherwise.
      pixels: those with data, of a scene that was mapped now.
    """

    job: Job
    state: str
    reason: str = ""
    pixels: int = 0


def find_scenes(inputs: Sequence[str]) -> list[tuple[str, PurePosixPath]]:
    """Find the scenes that inputs name.

    Args:
      inputs: files; names that GDAL opens; folders, in which scenes are looked for at any depth; patterns
        with `*`, `?` or `[...]`, where `**` stands for any folders; and text files (.txt) with an input on
        each line, relative to the list, ` #` starting a comment.

    Returns:
      Each scene once, in order, with a name for its map: its place in the folder, or its own name.

    Raises:
      UserError: an input names no scene.
    """
    found: dict[str, tuple[str, PurePosixPath]] = {}  # by its place, however that is spelled
    for text in inputs:
        scenes = _scenes_of(text)
        if not scenes:
            raise UserError(f"{text}: no scene there; scenes end in {', '.join(SUFFIXES)}")
        for scene, name in scenes:
            place = scene if is_remote(scene) else os.path.abspath(scene)
            found.setdefault(place, (scene, name))
    return list(found.values())


def _scenes_of(text: str) -> list[tuple[str, PurePosixPath]]:
    path = Path(text)
    if is_remote(text):
        return [(text, PurePosixPath(scene_stem(text)))]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_scene(file.relative_to(path)))
        return [(str(file), PurePosixPath(file.relative_to(path)).with_suffix("")) for file in files]
    if path.suffix.lower() == _LIST:
        return [scene for line in _lines(path) for scene in _scenes_of(line)]
    if not path.exists() and _GLOB.search(text):
        files = sorted(map(Path, glob.glob(text, recursive=True)))
        return [(str(file), PurePosixPath(file.stem)) for file in files if _is_scene(Path(file.name))]
    if (container := container_of(text)) is not None:
        raster = re.sub(r"\W+", "_", text.rpartition(":")[2])
        return [(text, PurePosixPath(f"{container.stem}_{raster}"))]
    if not path.is_file():
        raise UserError(f"{text}: no such file, folder or pattern; give --input existing scenes")
    return [(text, PurePosixPath(path.stem))]


def _is_scene(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _lines(path: Path) -> list[str]:
    """Return the inputs that a text file lists, relative to its folder.

    Raises:
      UserError: the file is not readable text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: not a readable list of scenes ({problem})") from None
    named = [_COMMENT.sub("", line).strip() for line in lines]
    for text in named:
        if text.lower().endswith(_LIST):
            raise UserError(f"{path}: names the list {text}; give every list as --input")
    return [text if is_remote(text) else str(path.parent / text) for text in named if text]


class Beside(NamedTuple):
    """What is written beside every map.

    Attributes:
      products: names of rasters, see `inference.products`.
      previews: folder for pictures, or None.
      vectors: folder for polygons (GeoPackages), or None.
      outlines: of the polygons.
    """

    products: tuple[str, ...] = ()
    previews: Path | None = None
    vectors: Path | None = None
    outlines: Outlines = OUTLINES

    def files(self, job: Job, folder: Path) -> dict[str, Path]:
        """Return the files beside the map of a scene, by their kind.

        Args:
          job: the scene and its map.
          folder: that all maps are below, which names pictures and polygons.
        """
        found = {name: product_file(job.output, name) for name in self.products}
        name = job.output.relative_to(folder)
        if self.vectors is not None:
            found["vector"] = (self.vectors / name).with_suffix(".gpkg")
        if self.previews is not None:
            found["preview"] = (self.previews / name).with_suffix(".png")
        return found


NOTHING = Beside()


def plan(inputs: Sequence[str], folder: Path, beside: Beside = NOTHING) -> list[Job]:
    """Return a job for every scene, with the maps below a folder.

    Maps and their previews are no scenes, wherever their folders are.

    Args:
      inputs: as in `find_scenes`.
      folder: of the maps.
      beside: what is written beside every map.

    Raises:
      UserError: an input names no scene, two scenes would have the same map, or a folder is a file.
    """
    previews = beside.previews
    written = [place for place in (folder, previews, beside.vectors) if place is not None]
    for place in written:
        if place.is_file() or place.suffix.lower() in (*SUFFIXES, *DRIVERS):
            raise UserError(f"{place}: is the name of a file; let a map end in .tif, or give a folder")
    found = [(scene, name) for scene, name in find_scenes(inputs) if not _is_map(scene, folder)]
    if previews is not None and previews.is_dir():
        drawn = {os.path.abspath(previews / f"{name}.png") for _, name in found}
        found = [(scene, name) for scene, name in found if os.path.abspath(scene) not in drawn]
    jobs = [Job(scene, folder / f"{name}.tif") for scene, name in found]
    if not jobs:
        raise UserError(f"{', '.join(inputs)}: no scene there that is not a map in {folder}")
    files: dict[Path, str] = {}
    for job in jobs:
        for file in (job.output, *beside.files(job, folder).values()):
            if file in files:
                raise UserError(
                    f"{files[file]} and {job.scene} would both be mapped to {file}: give a folder that holds "
                    "both, or map them into folders of their own"
                )
            files[file] = job.scene
    return jobs


def _is_map(scene: str, folder: Path) -> bool:
    """Return whether a scene is a map, or a product of one, in the folder of the maps."""
    if is_remote(scene) or not Path(os.path.abspath(scene)).is_relative_to(os.path.abspath(folder)):
        return False
    return _MAP in _tags_of(Path(scene))


def part_of_scenes(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return index and number of the parts that `--shard` asks for.

    Args:
      text: `I/N` with I from 0 to N - 1; `auto/N`, whose index is that of a SLURM array or of an indexed
        Kubernetes job; or `auto`, where SLURM also tells the number.
      environment: the process's.

    Raises:
      UserError: the text is none of these, or the environment does not tell.
    """
    index, slash, count = text.partition("/")
    if index == "auto":
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1) or 1)
        found = environment.get("JOB_COMPLETION_INDEX")
        if "SLURM_ARRAY_TASK_ID" in environment:
            found = str((int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step)
        if found is None:
            raise UserError(f"--shard {text}: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set")
        index, count = found, count if slash else environment.get("SLURM_ARRAY_TASK_COUNT", "")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        told = f", found {index}/{count}" if text.startswith("auto") else ""
        raise UserError(
            f"--shard {text}{told}: write I/N with I from 0 to N - 1, auto/N, or auto in a SLURM array "
            "whose numbers follow each other"
        )
    return int(index), int(count)


def map_scenes(
    model: Model,
    jobs: Sequence[Job],
    folder: Path,
    beside: Beside = NOTHING,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    said: Callable[[str], str] = str,
) -> list[Outcome]:
    """Map scenes one after the other; a scene that fails does not stop the others.

    Args:
      model: the model.
      jobs: scenes and their maps.
      folder: that all maps are below.
      beside: what is written beside every map.
      overwrite: whether to make maps anew that are done, or that another model made.
      console: where to print a line for every scene.
      said: rewrites what is printed, as names of scenes that are no files.

    Returns:
      What became of each.
    """
    console = console or Console()
    outcomes: list[Outcome] = []
    sizes = [_pixels_of(job.scene) if console.is_terminal else 0 for job in jobs]
    with _Bar(console, sum(sizes)) as bar:
        for number, (job, size) in enumerate(zip(jobs, sizes, strict=True), 1):
            began, before = time.monotonic(), bar.done
            try:
                files = beside.files(job, folder)
                outcome = _map(model, job, beside, files, overwrite, bar.advance)
            except (UserError, RasterioError, OSError) as problem:
                outcome = Outcome(job, "failed", " ".join(str(problem).split()))
            bar.advance(before + size - bar.done)  # whatever became of it
            outcomes.append(outcome)
            seconds = time.monotonic() - began
            speed = f", {outcome.pixels / seconds / 1e6:.2f} Mpixel/s" if outcome.pixels else ""
            why = f": {outcome.reason}" if outcome.reason else ""
            line = f"{number}/{len(jobs)} {job.scene}: {outcome.state}{why} ({seconds:.1f} s{speed})"
            console.print(plain(said(line)), soft_wrap=True)
    return outcomes


class _Bar:
    """A live bar over the pixels of all scenes, on a terminal alone.

    Attributes:
      done: pixels that are finished.
    """

    def __init__(self, console: Console, total: int):
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal or not total)
        self._task = self._bar.add_task("", total=total, speed="")
        self.done = 0

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, pixels: int) -> None:
        """Count some pixels."""
        self.done += pixels
        speed = self._bar.tasks[0].speed or 0.0
        self._bar.update(self._task, completed=self.done, speed=f"{speed / 1e6:.2f} Mpixel/s")


def _pixels_of(scene: str) -> int:
    """Return the number of pixels of a scene; 0 if it cannot be opened, which mapping it will tell."""
    try:
        with reading(scene), open_scene(scene) as dataset:
            return dataset.width * dataset.height
    except (UserError, OSError):
        return 0


def _map(
    model: Model,
    job: Job,
    beside: Beside,
    files: Mapping[str, Path],
    overwrite: bool,
    progress: Callable[[int], None],
) -> Outcome:
    """Map one scene, unless its map is there.

    Raises:
      UserError: the scene cannot be mapped, or the file is the map of another model or no map.
    """
    tags = {_MAP: model.fingerprint, _SCENE: _scene_size(job.scene)}
    products = [files[name] for name in beside.products]
    drawn = [files[name] for name in ("vector", "preview") if name in files]
    rasters = [job.output, *products]
    if "vector" in files:
        tags[_OUTLINES] = " ".join(map(str, beside.outlines))
    there = {path: _tags_of(path) for path in rasters if path.exists()}
    for path, earlier in there.items():
        if not any(name in earlier for name in _OURS):
            raise UserError(f"{path}: exists, and is no map; give another --output")
    for path in drawn:
        if path.exists() and not job.output.exists() and not overwrite:
            raise UserError(f"{path}: exists, without a map; give another folder, or --overwrite")
    if there and not overwrite:
        calibrated = tags | {"TEMPERATURE": f"{model.temperature:.6g}"} if products else tags
        whole = _is_whole(job.output, tags) and all(_is_whole(path, calibrated) for path in products)
        if whole and all(_is_drawn(path, job.output) for path in drawn):
            return Outcome(job, "done before")
        if any(earlier.get(_MAP) != tags[_MAP] for earlier in there.values()):
            raise UserError(
                f"{job.output}: exists, and is not of this model; give another --output, or --overwrite"
            )
    for path in (job.output, *drawn):
        path.parent.mkdir(parents=True, exist_ok=True)
    asked: dict[str, Any] = dict.fromkeys(beside.products, True)
    done = model.map(
        job.scene,
        job.output,
        **asked,
        preview=files.get("preview"),
        vector=files.get("vector"),
        outlines=beside.outlines,
        tags=tags,
        progress=progress,
    )
    return Outcome(job, "mapped", pixels=done["pixels"])


def _is_drawn(file: Path, output: Path) -> bool:
    """Return whether the picture or the polygons of a map are there, and not older than the map."""
    # they are made last and moved into place first
    return file.exists() and file.stat().st_mtime >= output.stat().st_mtime


def _scene_size(scene: str) -> str:
    """Return the size of a scene's file in bytes, which tells whether it changed; `unknown` for addresses."""
    return "unknown" if is_remote(scene) or not Path(scene).is_file() else str(Path(scene).stat().st_size)


def _tags_of(path: Path) -> dict[str, str]:
    """Return the metadata of a map; none of a file that is no raster."""
    try:
        with reading(str(path)), open_as_stored(path) as dataset:
            return dataset.tags()
    except (RasterioError, UserError):
        return {}


def _is_whole(path: Path, tags: Mapping[str, str]) -> bool:
    """Return whether a raster has some metadata and its last pixels, which are stored at its end."""
    try:
        with reading(str(path)), open_as_stored(path) as dataset:
            dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))
            return {name: dataset.tags().get(name) for name in tags} == dict(tags)
    except (RasterioError, UserError):
        return False


def print_failures(outcomes: Sequence[Outcome], console: Console, said: Callable[[str], str] = str) -> None:
    """Print how many scenes came to what, and a table of those that failed."""
    counts = Counter(outcome.state for outcome in outcomes)
    console.print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        table = Table("scene", "reason", title="failed", box=None, header_style="bold")
        for outcome in failed:
            table.add_row(plain(said(outcome.job.scene)), plain(said(outcome.reason)))
        console.print(table)
