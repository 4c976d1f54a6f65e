"""One training step of a tiny segmenter that has every part which is sharded over devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig, TrainConfig
from spectralmoe_jax.models.build import abstract_segmenter, make_segmenter, segmenter_config
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import training_layout
from spectralmoe_jax.parameters import split
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import TrainState, init_state, make_loss, make_train_step

WIDTH, SIDE, BATCH, CLASSES = 24, 64, 8, 5
SIZES = {
    "model.visual.width": WIDTH, "model.visual.layers": 2, "model.visual.heads": 2,
    "model.depth.width": WIDTH, "model.depth.layers": 2, "model.depth.heads": 2, "model.depth.table_size": 4,
    "model.out_layers": (0, 0, 1, 1), "model.dtype": "float32",
    "model.adapter.num_tokens": 7, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
    "model.head.num_queries": 7, "model.head.width": 16, "model.head.num_heads": 2,
    "model.head.encoder_layers": 1, "model.head.decoder_layers": 1, "model.head.encoder_ffn": 16,
    "model.head.decoder_ffn": 16, "model.head.group_norm_groups": 4, "loss.num_points": 32,
    "train.batch_size": BATCH, "train.steps": 10,
    "classes.names": tuple("abcde"), "classes.palette": ((0, 0, 0),) * CLASSES,
}  # fmt: skip


def tiny_config(data=1, fsdp=1, expert=1, **values) -> RunConfig:
    """The cross-sensor configuration at a tiny size on a mesh, with other values by dotted key."""
    mesh = {"parallel": {"data": data, "fsdp": fsdp, "expert": expert}}
    other_head = "model.head" in values
    sizes = {key: size for key, size in SIZES.items() if not (other_head and key.startswith("model.head."))}
    return load_config("configs/fbp_cross_sensor.py").replaced(mesh | sizes | values)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (BATCH, SIDE, SIDE, 4)).astype(np.uint8)
    label = rng.integers(0, CLASSES, (BATCH, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    label[0, :4] = 255
    return {"image": image, "label": label.astype(np.uint8)}


@functools.cache
def values_of(settings):
    """Trainable and frozen parameters, random throughout: at initialisation experts and gates are zero."""
    trainable, frozen = split(make_segmenter(settings, 0))
    rng = np.random.default_rng(1)

    def noisy(leaf):
        return np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.map(noisy, trainable), jax.tree.map(np.asarray, frozen)


def state_of(params, optimizer, layout: Layout | None, has_average=False) -> TrainState:
    """A state in the middle of training: with the moments of a first step, an update would be the gradient's
    sign, which rounding decides where the gradient is next to zero."""
    params = jax.tree.map(jnp.asarray, params) if layout is None else layout.place(params)
    state = init_state(params, optimizer, layout, has_average)

    def filled(leaf):
        if leaf.ndim == 0:
            return leaf
        draws = np.random.default_rng(leaf.size).uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return jax.device_put(draws, leaf.sharding)

    return dataclasses.replace(state, opt_state=jax.tree.map(filled, state.opt_state))


class Step:
    """One training step of a configuration on its mesh."""

    def __init__(self, config, devices):
        self.layout = training_layout(config, devices)
        settings = segmenter_config(config)
        structure = abstract_segmenter(settings)
        trainable, frozen = values_of(settings)
        train = TrainConfig(steps=10, learning_rate=1e-2)
        self.optimizer = make_optimizer(train, trainable, structure.optimizer_rules)
        ema = config.train.ema
        self.state = state_of(trainable, self.optimizer, self.layout, has_average=ema is not None)
        self.frozen = jax.tree.map(jnp.asarray, frozen) if self.layout is None else self.layout.place(frozen)
        self.batch = batch_of() if self.layout is None else self.layout.place_batch(batch_of())
        self.key = jax.random.key(3) if self.layout is None else self.layout.place(jax.random.key(3))
        loss = make_loss(structure, config.loss)
        given = (self.state, self.frozen, self.batch, self.key)
        more = {"accumulate": config.train.accumulate, "ema": ema}
        self.compiled = make_train_step(loss, self.optimizer, self.layout, **more).lower(*given).compile()

    def __call__(self):
        return self.compiled(self.state, self.frozen, self.batch, self.key)

    def hlo(self) -> str:
        return self.compiled.as_text()
