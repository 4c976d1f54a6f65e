"""`spectralmoe predict`: a georeferenced map of a scene of any size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spectralmoe_jax.configuration import from_config
from spectralmoe_jax.inference.geotiff import predict_scene
from spectralmoe_jax.inference.model import load_trained, make_predict
from spectralmoe_jax.inference.sliding_window import WindowSettings
from spectralmoe_jax.parallel.mesh import using_layout


def predict(checkpoint: str | os.PathLike[str], config: ConfigDict, *, input: str | os.PathLike[str],
            output: str | os.PathLike[str], confidence: bool = False,
            preview: str | os.PathLike[str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Map a scene with a run's best checkpoint; see `prediction.geotiff.predict_scene`.

    Args:
      checkpoint: folder of the run. config: its configuration.
      input: raster with the bands of the configuration. output: map to write.
      confidence: write the confidence beside the map. preview: PNG to write, or None.

    Raises UserError naming the file or key that is wrong.
    """
    settings = from_config(WindowSettings, config.evaluate, "evaluate")
    layout = using_layout(config)
    return predict_scene(
        make_predict(load_trained(checkpoint, config, layout), layout),
        Path(input),
        Path(output),
        settings=settings,
        names=config.classes.names,
        palette=config.classes.palette,
        bands=config.bands,
        sensor=config.get("sensor"),
        file_bands=config.data.get("file_bands"),
        confidence=confidence,
        preview=None if preview is None else Path(preview),
    )
