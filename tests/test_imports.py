"""The model and the train step can be used where the data pipelines' libraries are not installed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIPELINE_LIBRARIES = (
    "grain",
    "ml_collections",
    "tensorflow_datasets",
    "tensorflow",
    "rasterio",
    "pyogrio",
    "cv2",
)
TRACKERS = ("wandb", "mlflow")  # imported when a configuration names them

_SCRIPT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*PIPELINE_LIBRARIES, *TRACKERS, "data_pipelines")!r}:
            raise ImportError(f"{{name}} was imported")

sys.meta_path.insert(0, Absent())
import spectralmoe_jax.models.build
import spectralmoe_jax.parallel.mesh
import spectralmoe_jax.training.loop
import spectralmoe_jax.training.optimizer
import spectralmoe_jax.training.step
"""


def test_model_and_step_import_without_the_pipelines_and_trackers():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
