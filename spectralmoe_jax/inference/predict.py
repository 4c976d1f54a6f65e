"""`spectralmoe predict`: a georeferenced map of a scene of any size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spectralmoe_jax.config.load import Configuration, as_run_config, read_run_config
from spectralmoe_jax.inference.geotiff import predict_scene
from spectralmoe_jax.inference.model import load_trained, make_predict
from spectralmoe_jax.parallel.mesh import using_layout


def predict(
    checkpoint: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    confidence: bool = False,
    preview: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Map a scene with a run's best checkpoint.

    Args:
      checkpoint: folder of the run.
      config: in any form of `config.load.Configuration`; None for the one stored in the folder.
      input: raster with the bands of the configuration.
      output: map to write.
      confidence: write the confidence beside the map.
      preview: PNG to write, or None.

    Returns:
      See `inference.geotiff.predict_scene`.

    Raises:
      UserError: names the file or key that is wrong.
    """
    run = read_run_config(checkpoint) if config is None else as_run_config(config)
    layout = using_layout(run)
    return predict_scene(
        make_predict(load_trained(checkpoint, run, layout), layout),
        Path(input),
        Path(output),
        settings=run.evaluate,
        names=run.classes.names,
        palette=run.classes.colours,
        bands=run.bands,
        sensor=run.sensor,
        file_bands=run.data.file_bands,
        confidence=confidence,
        preview=None if preview is None else Path(preview),
    )
