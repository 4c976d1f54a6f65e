"""Time to trace and lower the published model's training step, from shapes alone.

ViT-L encoders, 512x512 pixels, batch 8, bfloat16. Nothing is allocated, so any machine will do.

  python benchmarks/lower_full_step.py
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parameters import split
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import init_state, make_loss, make_train_step

_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fbp_cross_sensor.py"


def main() -> None:
    """Print the seconds of each stage."""
    config = load_config(str(_CONFIG))
    start = time.perf_counter()
    structure = abstract_segmenter(segmenter_config(config))
    trainable, frozen = split(structure)
    optimizer = make_optimizer(config.train, trainable)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), trainable)
    shape = (config.train.batch_size, config.data.crop, config.data.crop)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, len(config.bands)), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8),
    }
    step = make_train_step(make_loss(structure, config.loss), optimizer)
    described = time.perf_counter()
    traced = step.trace(state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))
    traced_at = time.perf_counter()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    size = f"batch {shape[0]}, {shape[1]}x{shape[2]} pixels, {config.model.dtype}"
    print(f"{_CONFIG.name}: {size}, jax {jax.__version__}")
    print(f"describe  {described - start:6.1f} s")
    print(f"trace     {traced_at - described:6.1f} s")
    print(f"lower     {lowered_at - traced_at:6.1f} s, {len(lowered.as_text()) / 1e6:.1f} MB of StableHLO")
    print(f"total     {lowered_at - start:6.1f} s")


if __name__ == "__main__":
    main()
