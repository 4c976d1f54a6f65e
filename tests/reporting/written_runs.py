"""Handwritten folders of a run and of a grid at their largest size; no model is needed."""

import json
from pathlib import Path

import numpy as np

from spectralmoe_jax.ablation.ablate import write_results
from spectralmoe_jax.ablation.grid import Grid, grid_runs
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.evaluation.metrics import ImageCounts, Tally, write_images
from spectralmoe_jax.evaluation.score_table import make_report, routing_report, write_report
from spectralmoe_jax.evaluation.stored_scores import EVALUATION_FILE, IMAGES_FILE
from spectralmoe_jax.inference.pictures import PICTURES_FILE, ScenePictures

LAYERS, MODALITIES, EXPERTS, SIDE, TOKENS = 24, 2, 6, 256, 32
NASTY = 'bare <soil> & "rock"'


def write_run(folder: Path, seed: int = 0) -> None:
    """What `train` and judging leave of a run of 24 layers with depth, on scenes of 256 pixels."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config("configs/quickstart.py")
    config = config.replaced({"classes.names": (*config.classes.names[:-1], NASTY)})
    save_config(config, folder / "config.json")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(20, 3020, 20):
            loss = 30 * np.exp(-step / 900) + rng.random()
            parts = {f"loss_{name}": loss / 3 for name in ("cls", "mask", "dice")}
            values = {"loss": loss, **parts, "loss_balance": 0.01, "learning_rate": 1e-4}
            file.write(json.dumps({"step": step, "kind": "train", **values}) + "\n")
            usage = rng.dirichlet(np.ones(EXPERTS) * 5, (LAYERS, MODALITIES)).round(4).tolist()
            file.write(json.dumps({"step": step, "kind": "experts", "expert_usage": usage}) + "\n")
        for step in (1000, 2000, 3000):
            scores = {"miou": step / 5000, "overall_accuracy": None if step == 1000 else 0.8}
            file.write(json.dumps({"step": step, "kind": "evaluate", **scores}) + "\n")
        file.write('{"step": 3020, "ki')  # killed while it wrote
    tally = Tally(config.classes.names, temperatures=(1.0, 1.7))
    scores = rng.gamma(1, size=(40, 50, 6))
    tally.add_scores("north", "scored", rng.integers(0, 6, (40, 50)), scores + 3 * (scores == scores.max()))
    for i in range(12):
        counts = rng.integers(0, 500, (6, 6)) + np.diag(rng.integers(500, 3000, 6))
        counts[4] = 0  # a class that is never true
        tally.images.append(ImageCounts(("north", "south")[i % 2], f"scene {i}", counts))
    routing = routing_report(rng.integers(0, 900, (LAYERS, MODALITIES, EXPERTS, 6)))
    report = make_report(tally) | {"routing": routing, "trainable": 5_737_985, "step": 3000, "trained": 3000}
    write_images(tally.images, folder / IMAGES_FILE)
    write_report(report, folder / EVALUATION_FILE)
    scenes = [_scene(rng, name) for name in ("north/scene_0", "south <b>/scene_1", "north/scene_2")]
    fields = {f"{i}/{k}": np.asarray(v) for i, s in enumerate(scenes) for k, v in s._asdict().items()}
    np.savez_compressed(folder / PICTURES_FILE, allow_pickle=False, **fields)


def _scene(rng: np.random.Generator, name: str) -> ScenePictures:
    """Blobs of classes, some noise in what is predicted, as grainy a photo as there are."""
    truth = np.kron(rng.integers(0, 6, (16, 16)), np.ones((16, 16), int)).astype(np.uint8)
    truth[:20, :50] = 255
    wrong = rng.random((SIDE, SIDE)) < 0.05
    return ScenePictures(
        domain=name.partition("/")[0],
        name=name,
        image=np.clip(rng.normal(120, 30, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8),
        truth=truth,
        prediction=np.where(wrong, rng.integers(0, 6, truth.shape), truth % 6).astype(np.uint8),
        experts=rng.integers(0, EXPERTS, (LAYERS, MODALITIES, TOKENS, TOKENS)).astype(np.uint8),
        depth=rng.integers(0, 256, (3, TOKENS, TOKENS, 3)).astype(np.uint8),
        depth_layers=np.array([1, 12, 24]),
    )


def write_grid_folder(folder: Path, variants: int = 12) -> None:
    """A grid of so many runs, and one that failed."""
    settings = {f"E = {n}, a rather long name of a <variant>": {"model.adapter.num_experts": n}
                for n in range(1, variants + 1)}  # fmt: skip
    settings["lost"] = {"model.weights": "nowhere.safetensors"}
    grid = Grid(
        "configs/quickstart.py", settings, next(iter(settings)), seeds=(0,), title="Number of experts"
    )
    found = grid_runs(grid, folder)
    for cell in found[:variants]:
        write_run(cell.folder, cell.number)
    found[-1].folder.mkdir(parents=True)
    (found[-1].folder / "failure.json").write_text('{"error": "nowhere.safetensors: no such file"}')
    write_results(grid, found, folder)
