"""Every command and every Python block of the documentation, extracted from the page.

All of them are parsed, with the configuration they name and their overrides. Those that need no download run
in the order of the page: as they stand, in a folder that holds small images and weights under the names of
the page, with further overrides that make the model and the run tiny.
"""

import importlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from flax import nnx
from huggingface_hub import constants
from rasterio.transform import from_origin

from spectralmoe_jax.ablation.grid import grid_runs, load_grid
from spectralmoe_jax.cli.main import COMMANDS, main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.conversion.export import released_tensors
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.build import make_segmenter, segmenter_config
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.format_tables import GALILEO, encoder_rules
from spectralmoe_jax.weights.name_rules import write_tensors
from tests.datasets import lookalikes
from tests.documentation import pages
from tests.documentation.pages import PAGES, Call
from tests.tiny_run import SIZES
from tests.weights.test_released import tiny

# Commands that parse and do not run here, each with what does the same.
NOT_RUN = {
    "spectralmoe predict --checkpoint runs/dubai --input https://HOST/SCENE.tif --output MAP.tif": (
        "tests/inference/test_catalogue.py does, from a server of its own"
    ),
    "spectralmoe push runs/dubai hf://owner/dubai --licence cc-by-4.0 --private": (
        "tests/sharing/test_push.py does, against a stand-in for the hub's client"
    ),
    "spectralmoe serve runs/dubai": "it ends when it is asked to; tests/serving/test_process.py does",
    "spectralmoe verify tests/goldens": "tests/parity/test_verify.py does, in a minute",
    "spectralmoe ablate configs/ablations/dubai_size.py --workdir runs/dubai_size --side-by-side 2 "
    "--config.data.root=DUBAI": "its variants set crop and steps, so that nothing makes them small",
}
TINY = {
    "data.crop": 64, "data.workers": 0, "model.remat": "none", "model.dtype": "float32",
    "model.out_layers": "(0,1,2,3)",
    "model.visual.width": 16, "model.visual.layers": 4, "model.visual.heads": 2,
    "model.adapter.num_tokens": 30, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
    "model.head.num_queries": 30, "model.head.width": 16, "model.head.num_heads": 2,
    "model.head.encoder_layers": 1, "model.head.decoder_layers": 1, "model.head.encoder_ffn": 16,
    "model.head.decoder_ffn": 16, "model.head.group_norm_groups": 4, "loss.num_points": 32,
    "train.batch_size": 2, "train.steps": 2, "train.warmup_steps": 0, "train.log_every": 1,
    "train.evaluate_every": 2, "train.checkpoint_every": 2,
    "evaluate.window": 64, "evaluate.overlap": 0, "evaluate.batch_size": 4,
}  # fmt: skip
ONE_DEVICE = {"parallel.fsdp": 1, "parallel.expert": 1}
OF_PUBLISHED_SIZE = {"model.visual.patch_size": 8, "model.depth.patch_size": 8, "model.depth.table_size": 4,
                     "model.depth.width": 16, "model.depth.layers": 4, "model.depth.heads": 2}  # fmt: skip
TINIER = {
    "quickstart": dict(value.split("=", 1) for value in SIZES) | {
        "train.steps": 2, "train.evaluate_every": 2, "train.checkpoint_every": 2, "train.warmup_steps": 0,
    },
    "dubai": TINY | {"data.crop": 60, "evaluate.window": 60},
    "cloud_shadow": TINY,
    "cloud_shadow:galileo": {
        "train.steps": 2, "train.batch_size": 2, "train.warmup_steps": 0, "train.probe_tiles": 4,
        "train.evaluate_every": 2, "train.checkpoint_every": 2,
    },
    "loveda": TINY | OF_PUBLISHED_SIZE,
    "fbp_cross_sensor": TINY | OF_PUBLISHED_SIZE,
}  # fmt: skip


def commands(page: str, folder: Path) -> list[Call]:
    """What the bash blocks and the sentences of a page have the reader run."""
    return calls([*pages.scripts(page), *pages.inline_commands(page)], folder)


def calls(found: list[pages.Block], folder: Path) -> list[Call]:
    """What scripts call, in order."""
    every = []
    for number, block in enumerate(found):
        place = folder / f"script{number}"
        place.mkdir(parents=True)
        every += pages.calls(block, place)
    return every


def as_spectralmoe(call: Call) -> tuple[str, ...] | None:
    """The arguments that `spectralmoe` gets, from a launcher, too; None for another command."""
    if call.words[0] == "spectralmoe":
        return call.words[1:]
    if call.words[0] == "sbatch":
        given = call.words[call.words.index("launch/slurm.sbatch") + 1 :]
        return ("train" if "--config" in given else "ablate", *given)
    return ("train", *call.words[call.words.index("--config") :]) if "--config" in call.words else None


def write_my_adapter(folder: Path) -> None:
    """The adapter that docs/adding_an_adapter.md has its reader save."""
    (whole,) = [
        b for b in pages.blocks("docs/adding_an_adapter.md", "python") if "class ScaleAndShift" in b.text
    ]
    (folder / "my_adapter.py").write_text(whole.text)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page, tmp_path, monkeypatch):
    """With what it names: its options, its configuration with overrides, or its grid; nothing runs."""
    write_my_adapter(tmp_path)
    monkeypatch.chdir(tmp_path)
    for call in commands(page, tmp_path / "scripts"):
        words = as_spectralmoe(call)
        if words is None:
            assert pages.is_listed(call), f"{page}:{call.line}: {call.text} is neither run nor listed"
            continue
        assert words[0] in COMMANDS, f"{page}:{call.line}: {call.text}"
        parsed = []
        module = importlib.import_module(f"spectralmoe_jax.cli.{COMMANDS[words[0]][0]}")
        with monkeypatch.context() as patch:
            command = getattr(module, words[0].capitalize())
            patch.setattr(command, "run", staticmethod(lambda *given, kept=parsed: kept.append(given) or 0))
            assert main(list(words)) == 0, f"{page}:{call.line}: {call.text}"
        ((arguments, overrides),) = parsed
        if getattr(arguments, "config", None):
            segmenter_config(load_config(arguments.config, overrides))
        elif hasattr(arguments, "grid"):
            grid = load_grid(arguments.grid, base=arguments.base, seeds=arguments.seeds)
            assert grid_runs(grid, Path(arguments.workdir), overrides)


@pytest.mark.slow
def test_options_of_the_measurements(tmp_path):
    """Those of `python benchmarks/NAME.py` on any page are options that the script has."""
    measured: dict[str, set[str]] = {}
    for page in PAGES:
        for call in commands(page, tmp_path / page):
            if call.words[0] == "python" and call.words[1].startswith("benchmarks/"):
                measured.setdefault(call.words[1], set()).update(w for w in call.words if w.startswith("--"))
    assert measured
    for script, options in measured.items():
        told = subprocess.run(
            [sys.executable, script, "--help"], cwd=pages.ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert not {option for option in options if f"{option} " not in told}, script


def test_what_is_listed_is_on_a_page(tmp_path):
    said = {call.text for page in PAGES for call in commands(page, tmp_path / page)}
    assert set(NOT_RUN) <= said
    assert not [name for name in pages.ELSEWHERE if not any(text.startswith(name) for text in said)]


# What the pages call by these names, small.


def write_raster(path: Path, pixels: np.ndarray, **profile) -> None:
    """Writes (H, W, C) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype,
        crs="EPSG:32640", transform=from_origin(327000, 2780000, 2, 2), **profile,
    ) as sink:  # fmt: skip
        sink.write(np.moveaxis(pixels, -1, 0))


def write_dubai(root: Path, rng: np.random.Generator) -> None:
    """Six tiles of two images: brightness follows the class, with noise; a tenth is unlabelled."""
    classes = load_config("configs/dubai.py").classes
    palette = np.array([*classes.palette, (155, 155, 155)], np.uint8)
    for tile, image in itertools.product(range(1, 7), range(2)):
        label = rng.integers(0, 5, (6, 8)).repeat(16, 0).repeat(16, 1)
        pixels = 40 * label[..., None] + rng.integers(0, 90, (*label.shape, 3))
        label[rng.random(label.shape) < 0.1] = 5
        folders = [root / f"tile_{tile}" / kind for kind in ("images", "masks")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folders[0] / f"{image}.jpg"), pixels.astype(np.uint8)[..., ::-1])
        cv2.imwrite(str(folders[1] / f"{image}.png"), palette[label][..., ::-1])


def write_clouds(root: Path, rng: np.random.Generator) -> None:
    """A scene a sensor, six named bands of reflectance and a label."""
    for sensor in ("landsat5", "landsat7"):
        label = rng.integers(1, 4, (16, 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        pixels = (0.1 * label[..., None] + rng.random((*label.shape, 6)) / 10).astype(np.float32)
        write_raster(root / f"{sensor}_image.tif", pixels)
        with rasterio.open(root / f"{sensor}_image.tif", "r+") as sink:
            sink.descriptions = ("blue", "green", "red", "nir", "swir16", "swir22")
        write_raster(root / f"{sensor}_label.tif", label[..., None])


def write_weights(folder: Path, config: RunConfig) -> None:
    """The authors' files and Meta's, under the names of the pages, of a segmenter with random weights."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    settings = segmenter_config(config)
    values = {path: np.asarray(leaf) for path, leaf in leaves(make_segmenter(settings, seed=0)).items()}
    tensors = dict(released_tensors(settings, values.items()))
    trained = {name for name in tensors if name.startswith(("backbone.depthmoe.", "decode_head."))}
    backbone = {name.removeprefix("backbone."): tensors[name] for name in tensors
                if name.startswith("backbone.") and name not in trained}  # fmt: skip
    depth = "depth_anything."
    for name, part in {
        "BACKBONE.pth": backbone,
        "CHECKPOINT.pth": {name: tensors[name] for name in trained},
        "dinov3_vitl16.pth": {key: x for key, x in backbone.items() if not key.startswith(depth)},
        "promptda_vitl.ckpt": {
            key.removeprefix(depth): x for key, x in backbone.items() if key.startswith(depth)
        },
    }.items():
        torch.save({key: torch.from_numpy(value.copy()) for key, value in part.items()}, folder / name)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """The reader's folder, current: the images and weights that the pages name."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "reader"
    folder.mkdir()
    write_dubai(folder / "data" / "dubai", rng)
    write_clouds(folder / "data" / "cloudshadow", rng)
    for name, real in {"DUBAI": "dubai", "DATA": "dubai", "CLOUDSHADOW": "cloudshadow"}.items():
        (folder / name).symlink_to(folder / "data" / real)
    write_raster(folder / "SCENE.tif", rng.integers(1, 255, (90, 70, 3)).astype(np.uint8))
    lookalikes.write("loveda", folder / "DOWNLOADED")
    write_weights(folder, tiny())
    write_my_adapter(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def put_on_the_hub(hub: Path, repository: str) -> None:
    """A tiny DINOv3 in the hub's local cache, as if it had been downloaded."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    config = transformers.DINOv3ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=8, intermediate_size=64,
        num_register_tokens=4,
    )  # fmt: skip
    transformers.DINOv3ViTModel(config).save_pretrained(root / "snapshots" / "c0ffee")


def put_galileo_on_the_hub(hub: Path) -> None:
    """Galileo-nano's folder in the hub's local cache, with random weights."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    values = preset("galileo_nano", "")
    channels = ("B2", "B3", "B4", "B8", "B11", "B12")
    config = EncoderConfig(**values, channels=channels, in_channels=len(channels), month=6, resolution=10.0)
    encoder = make_encoder(config, rngs=nnx.Rngs(0))
    state = write_tensors(encoder_rules(GALILEO, config), leaves(encoder))
    root = hub / "models--nasaharvest--galileo"
    folder = root / "snapshots" / "c0ffee" / "models" / "nano"
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("c0ffee")
    (folder / "config.json").write_text(json.dumps({"model": {"encoder": {"num_heads": config.heads}}}))
    torch.save({name: torch.tensor(np.array(value)) for name, value in state.items()}, folder / "encoder.pt")


def run_example(call: Call) -> None:
    """Runs a command in this process, at a tiny size.

    A grid is its first run alone, and its tables; tiles of look-alikes are prepared without the files that
    they lack; a slice of TPUs is the device here.
    """
    command, *given = as_spectralmoe(call) or ()
    if command == "ablate":
        given += tinier_grid(given)
        if not {"--list", "--collect"} & set(given):
            assert main([command, *given, "--task", "0"]) == 0
            given.append("--collect")
    elif command == "compile":
        given += [*tinier(given), "--topology", "local", "--mesh", "data=1"]
    elif command in ("quickstart", "train", "data"):
        given += tinier(given)
    elif command == "prepare" and "--check" not in given:
        given += ["--partial", "--workers", "0"]
    began = time.monotonic()
    status = main([command, *given])
    print(f"{time.monotonic() - began:.1f} s")
    assert status == (1 if "--check" in given else 0), f"{call.line}: {call.text}"


def sizes_of(named: str) -> dict[str, object]:
    """Settings that make a configuration small, by its path and argument."""
    path, _, argument = named.partition(":")
    stem = Path(path).stem
    return TINIER.get(f"{stem}:{argument}", TINIER[stem])


def tinier(given: list[str]) -> list[str]:
    """Overrides that make a run of the configuration in a command line tiny."""
    named = [word for word in given if word.startswith("configs/")] or ["quickstart"]
    values = sizes_of(named[0]) | ONE_DEVICE
    kinds = [word.partition("=")[2] for word in given if word.startswith("--config.model.adapter.kind=")]
    if kinds and kinds != ["rein"]:  # which has the same keys
        values = {key: value for key, value in values.items() if not key.startswith("model.adapter.")}
    return [f"--config.{key}={value}" for key, value in values.items()]


def tinier_grid(given: list[str]) -> list[str]:
    """The same for a grid, but for what its variants differ in."""
    base = given[given.index("--base") + 1] if "--base" in given else given[0].partition(":")[2]
    values = sizes_of(base or load_grid(given[0]).base)
    if Path(given[0]).stem in ("components", "peers"):  # which get a depth encoder of the base's size
        values = values | {key.replace("visual", "depth"): values[key] for key in values if ".visual." in key}
    varied = {key for settings in load_grid(given[0]).variants.values() for key in settings}
    return [f"--config.{key}={value}" for key, value in values.items() if key not in varied]


def prerequisites(page: str, hub: Path) -> None:
    """What a page takes for granted: downloads, and what another page has the reader make."""
    if page in ("README.md", "docs/frozen_encoders.md", "docs/results.md"):
        put_galileo_on_the_hub(hub)
    if page == "README.md":
        put_on_the_hub(hub, "facebook/dinov3-vitl16-pretrain-lvd1689m")
    if page in ("README.md", "docs/adding_an_adapter.md", "docs/scaling.md"):
        lookalikes.write("fbp_cross_sensor", Path("FBP"))
        prepared = ["prepare", "fbp_cross_sensor", "--source", "FBP", "--out", "data", "--partial"]
        assert main([*prepared, "--workers", "0"]) == 0
    if page == "docs/mapping.md":
        train = ("train", "--config", "configs/dubai.py", "--config.data.root=DUBAI")
        run_example(Call(0, ("spectralmoe", *train, "--workdir", "runs/dubai")))
        Path("SCENES").mkdir()
        Path("SCENES/first.tif").symlink_to(Path("SCENE.tif").absolute())
    if page == "docs/checkpoints.md":
        sizes = {"width": 384, "layers": 12, "heads": 6, "patch_size": 16}  # recognised as those of a preset
        parts = ("visual", "depth")
        small = tiny(**{f"{part}__{key}": value for part in parts for key, value in sizes.items()})
        write_weights(Path(), small)
        train = (
            "train",
            "--config",
            "configs/dubai.py",
            "--config.data.root=DUBAI",
            "--workdir",
            "runs/dubai",
        )
        run_example(Call(0, ("spectralmoe", *train)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if pages.blocks(page, "bash")])
def test_commands_run(page, workspace, tmp_path):
    given = calls(pages.scripts(page, once=True), tmp_path)
    prerequisites(page, tmp_path / "hub")
    for call in given:
        runs = call.words[0] == "spectralmoe" or (as_spectralmoe(call) or ("",))[0] == "ablate"
        if runs and call.text not in NOT_RUN:
            print(f"{page}:{call.line}: {call.text}")
            run_example(call)
