"""Stages of the training step of both sides, as functions of their inputs for timing.

Each stage runs the code of the step on what the stages before it return; only the adapter's layers all follow
the encoders, where the step alternates between them. With gradients means those of the sum of squares of the
results, for parameters that train and inputs that gradients flow through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import torch
from timing import Run
from torch_model import TorchStep

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.mask2former.matching import match_filled, present_costs, slots_of
from spectralmoe_jax.mask2former.point_sampling import (
    candidate_points,
    label_map,
    point_weights,
    sample_own,
)
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.models.linear_head import LinearHead, pixel_cross_entropy
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parameters import join
from spectralmoe_jax.resampling import corners


class Stage(NamedTuple):
    """One stage on one side.

    Attributes:
      forward: runs it.
      gradients: runs it with gradients; None where nothing is differentiated.
    """

    forward: Run
    gradients: Run | None = None


class JaxStages:
    """Our stages.

    Attributes:
      stages: by name, in the order of the step.
    """

    def __init__(self, structure: Segmenter, trainable: Any, frozen: Any, batch: Any, loss: LossConfig):
        """Run every stage once, each on the results of those before.

        Args:
          structure: abstract segmenter.
          trainable: its trainable parameters.
          frozen: its frozen ones.
          batch: `image` (B, H, W, bands) and `label` (B, H, W).
          loss: settings of the loss.
        """
        self.structure, self.stages = structure, dict[str, Stage]()
        model = join(structure, trainable, frozen)
        image = model.normalise(batch["image"])
        visual, depth = self._add("encoders", self._encoders, image, frozen)  # (L, B, T, D) each
        parts = (structure.config.visual.prefix_tokens, structure.config.depth.prefix_tokens)
        visual, depth = visual[:, :, parts[0] :], depth[:, :, parts[1] :]  # (L, B, N, D)
        inputs = (trainable["backbone"]["adapter"], visual)
        tokens, _, queries = self._add("adapter", self._adapter, inputs, depth)
        grid = model.backbone.visual.grid(image.shape)
        maps = [tokens[i].reshape(len(image), *grid, -1) for i in structure.config.out_layers]
        if isinstance(structure.head, LinearHead):
            logits = self._add("linear head", self._linear_head, (trainable["head"], maps))
            self._add("whole loss", pixel_cross_entropy, logits, batch["label"].astype(jnp.int32))
            return
        rest = dict(trainable["head"])
        inputs = (rest.pop("pixel_decoder"), maps)
        pixels = self._add("pixel decoder", self._pixel_decoder, inputs)
        logits = self._add("decoder", self._decoder, (rest, pixels, queries), maps)
        self._add_loss(logits, batch["label"], loss)

    def _add(self, name: str, function: Callable, inputs: Any, constants: Any = None) -> Any:
        """Add a stage with gradients for `inputs`, and return its results."""

        def total(inputs: Any, constants: Any) -> jax.Array:
            """Sum the squares of the results."""
            leaves = jax.tree.leaves(function(inputs, constants))
            return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)

        narrow = self.structure.config.dtype == "bfloat16"
        with jax.default_matmul_precision("default" if narrow else "highest"):
            forward = jax.jit(function).lower(inputs, constants).compile()
            gradients = jax.jit(jax.value_and_grad(total)).lower(inputs, constants).compile()
        self.stages[name] = Stage(
            lambda: jax.block_until_ready(forward(inputs, constants)),
            lambda: jax.block_until_ready(gradients(inputs, constants)),
        )
        return forward(inputs, constants)

    def _encoders(self, image: jax.Array, frozen: Any) -> tuple[jax.Array, jax.Array]:
        """Tokens of all layers of both encoders, (L, B, T, D) each."""
        backbone = join(self.structure.backbone, frozen["backbone"])
        depth = all_layers(backbone.depth, image[..., jnp.asarray(backbone.depth_bands)])
        return all_layers(backbone.visual, image), jax.lax.stop_gradient(depth)

    def _adapter(self, inputs: Any, depth: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Refined tokens of all layers (L, B, N, D), balance losses (L,) and queries, with noise."""
        weights, visual = inputs
        adapter = join(self.structure.backbone.adapter, weights)
        keys = jax.random.split(jax.random.key(0), len(visual))

        def step(carry: None, layer: Any) -> tuple[None, Any]:
            """Run one layer: scan body."""
            out = adapter.layer(*layer)
            return carry, (out.tokens, out.auxiliary_loss)

        _, (tokens, losses) = jax.lax.scan(step, None, (adapter.stacked(), visual, depth, keys))
        return tokens, losses, adapter.queries()

    def _linear_head(self, inputs: Any, _: None) -> jax.Array:
        """Logits (B, h, w, C) of maps (B, h, w, D)."""
        weights, maps = inputs
        return join(self.structure.head, weights)(maps)

    def _pixel_decoder(self, inputs: Any, _: None) -> Any:
        """Pixel features of maps (B, h, w, D)."""
        weights, maps = inputs
        maps = [x.astype(self.structure.head.dtype) for x in maps]
        return join(self.structure.head.pixel_decoder, weights)(maps)

    def _decoder(self, inputs: Any, maps: Any) -> tuple[jax.Array, jax.Array]:
        """Class and mask logits of pixel features: the head with these in place of its pixel decoder."""
        weights, pixels, queries = inputs
        head = join(self.structure.head, weights)
        head.pixel_decoder = lambda maps, scales: pixels
        return head(maps, queries)

    def _add_loss(self, logits: tuple[jax.Array, jax.Array], labels: jax.Array, config: LossConfig) -> None:
        """Add the parts of the loss: the only code here that knows what the loss consists of.

        Args:
          logits: of classes (K, B, Q, C + 1), of masks (K, B, Q, h, w).
          labels: (B, H, W).
          config: settings of the loss.
        """
        classes, masks = (x.astype(jnp.float32) for x in logits)
        truth = label_map(labels, classes.shape[-1] - 1)
        slots, key = slots_of(truth), jax.random.key(0)
        points = jax.random.uniform(key, (*masks.shape[:2], config.num_points, 2))
        probabilities = jax.nn.softmax(classes, axis=-1)

        def all_costs(outputs: Any, codes: jax.Array) -> jax.Array:
            """Costs of all outputs, one at a time (B, K, C, Q)."""
            one = lambda output: present_costs(truth.size, config, *output, codes, slots)
            return jax.lax.map(one, outputs).swapaxes(0, 1)

        def draw(masks: jax.Array, keys: jax.Array) -> jax.Array:
            """Weights of the loss points of present classes' masks (K, B, G, h, w), one output at a time."""
            present = slots.classes[:, : masks.shape[2]]

            def one(output: tuple[jax.Array, jax.Array]) -> jax.Array:
                """Draw and select the points of one output."""
                masks, keys = output
                num_classes = slots.classes.shape[1]
                x, y = candidate_points(keys, present, num_classes, config, jnp.float32)
                return point_weights(sample_own(masks, corners(x, y, *masks.shape[2:])), config)

            return jax.lax.map(one, (masks, keys))

        costs = self._add_plain("matching costs", all_costs, (probabilities, masks, points), truth.codes)
        query, _ = self._add_plain("matching", match_filled, costs, slots.filled)
        query = query.swapaxes(0, 1)[:, :, : int(slots.filled.max())]
        chosen = jnp.take_along_axis(masks, query[..., None, None], axis=2)  # (K, B, G, h, w)
        self._add_plain("points", draw, chosen, jax.random.split(key, masks.shape[:2]))
        self._add(
            "whole loss",
            lambda logits, labels: mask2former_loss(*logits, labels, config=config, key=key).total,
            logits,
            labels,
        )

    def _add_plain(self, name: str, function: Callable, *inputs: Any) -> Any:
        """Add a stage that is not differentiated, and return its results."""
        forward = jax.jit(function).lower(*inputs).compile()
        self.stages[name] = Stage(lambda: jax.block_until_ready(forward(*inputs)))
        return forward(*inputs)


def optimizer_stage(optimizer: optax.GradientTransformation, params: Any) -> Stage:
    """Our optimizer's update of the parameters, with gradients that equal them."""

    def update(params: Any, state: Any, gradients: Any) -> tuple[Any, Any, jax.Array]:
        """Compute norm and update, as the step does."""
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradients)

    gradients = params
    carry = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    run = jax.jit(update, donate_argnums=(0, 1)).lower(*carry, gradients).compile()

    def once() -> None:
        """Update once."""
        carry[0], carry[1], norm = run(*carry, gradients)
        jax.block_until_ready((carry, norm))

    return Stage(once)


class TorchStages:
    """The stages of PyTorch that ours have a counterpart of.

    Attributes:
      stages: by name, in the order of the step.
    """

    def __init__(self, step: TorchStep):
        """Run every stage once, each on the results of those before."""
        self.step, model, self.stages = step, step.model, dict[str, Stage]()
        image = model.normalise(step.pixels)
        visual, depth = self._add("encoders", self._encoders, image)  # L of (B, T, D) each
        visual = [x[:, model.config.visual.prefix_tokens :] for x in visual]
        depth = [x[:, 1:] for x in depth]
        tokens, _, queries = self._add("adapter", lambda *visual: self._adapter(visual, depth), *visual)
        side = image.shape[-1] // model.config.visual.patch_size
        maps = [tokens[i].mT.unflatten(2, (-1, side)) for i in model.config.out_layers]
        if not hasattr(model, "criterion"):
            logits = self._add("linear head", lambda *maps: model.head(maps), *maps)
            self._add("whole loss", self._pixel_loss, logits)
            return
        pixels = self._add("pixel decoder", self._pixel_decoder, *maps)
        logits = self._add(
            "decoder", lambda a, b, c, d, q: model.head.decode([a, b, c], d, q), *pixels, queries
        )
        count = len(logits[0])
        self._add(
            "whole loss",
            lambda *both: model.criterion(both[:count], both[count:], step.targets),
            *logits[0],
            *logits[1],
        )

    def _add(self, name: str, function: Callable, *inputs: torch.Tensor) -> Any:
        """Add a stage with gradients for parameters and `inputs`, and return its results."""
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        wide = contextlib.nullcontext()  # the step computes the loss outside autocast
        context = wide if name == "whole loss" else self.step.model.autocast()

        def forward() -> Any:
            """Run the stage without gradients."""
            with torch.no_grad(), context:
                out = function(*leaves)
            self.step.wait()
            return out

        def gradients() -> None:
            """Run the stage with gradients."""
            self.step.optimizer.zero_grad(set_to_none=True)
            for leaf in leaves:
                leaf.grad = None
            with context:
                out = function(*leaves)
            found = [x for x in tensors(out) if x.requires_grad]
            sum(x.float().square().sum() for x in found).backward()
            self.step.wait()

        self.stages[name] = Stage(forward, gradients)
        return forward()

    def _encoders(self, image: torch.Tensor) -> tuple[list, list]:
        """Tokens (B, T, D) of all layers of both encoders."""
        model, visual, depth = self.step.model, [], []
        tokens, positions, blocks = model.visual_layers(image)
        with torch.no_grad():
            deep = model.depth.embeddings(image)
            for block in model.depth.encoder.layer:
                deep = block(deep)
                depth.append(deep)
        for block in blocks:
            tokens = block(tokens, position_embeddings=positions)
            visual.append(tokens)
        return visual, depth

    def _adapter(self, visual: Any, depth: Any) -> tuple[list, list, torch.Tensor]:
        """Refined tokens of all layers (B, N, D), balance losses and queries, with noise."""
        adapter = self.step.model.adapter
        shape = (2, *visual[0].shape[:2], adapter.config.num_experts)
        results = [
            adapter(layer, *both, torch.randn(shape, device=self.step.device))
            for layer, both in enumerate(zip(visual, depth, strict=True))
        ]
        tokens, balances = zip(*results, strict=True)
        return tokens, balances, adapter.queries()

    def _pixel_decoder(self, *maps: torch.Tensor) -> tuple:
        """Three levels and mask features of maps (B, D, h, w)."""
        pixels = self.step.model.head.pixels(maps)
        return (*pixels.multi_scale_features, pixels.mask_features)

    def _pixel_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy () of logits (B, C, h, w)."""
        labels = self.step.targets.labels
        logits = torch.nn.functional.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear")
        return torch.nn.functional.cross_entropy(logits, labels)


def tensors(tree: Any) -> list[torch.Tensor]:
    """Flatten nested tuples and lists of tensors."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for branch in tree for leaf in tensors(branch)]
