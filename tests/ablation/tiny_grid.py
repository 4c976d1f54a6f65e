"""A grid that trains in seconds: a linear head, a tiny depth encoder, two variants and one that fails."""

from pathlib import Path

from tests.tiny_run import SIZES

STEPS = 4
_SIZES = [size for size in SIZES if not size.startswith(("model.head.", "loss."))]
_OVERRIDES = [*_SIZES, "model.head.kind=linear", "data.scenes_target=3", "data.holdout=0.0",
              f"train.steps={STEPS}", "train.evaluate_every=2", "train.checkpoint_every=1"]  # fmt: skip

_BASE = f"""
from spectralmoe_jax.config.load import load_config

def get_config():
    return load_config("configs/quickstart.py", {[f"--config.{value}" for value in _OVERRIDES]!r})
"""

_GRID = """
from spectralmoe_jax.ablation import Grid, base_config, depth_encoder

def get_grid(base={base!r}):
    return Grid(
        title="Tiny",
        base=base,
        common=depth_encoder(base_config(base)),
        variants={{
            "full": {{}},
            "no depth": {{"model.adapter.use_depth": False}},
            "lost weights": {{"model.depth.weights": "nowhere.safetensors"}},
        }},
        reference="full",
        seeds=(0,),
    )
"""


def write_grid(folder: Path) -> Path:
    """The file of the grid, with its base beside it."""
    (folder / "base.py").write_text(_BASE)
    (folder / "grid.py").write_text(_GRID.format(base=str(folder / "base.py")))
    return folder / "grid.py"
