"""Our side of the measurements of a training step: its programs, compiled for one batch. Needs no PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from step_case import BANDS, Case
from timing import Run

from spectralmoe_jax.ahead_of_time.program_cost import product_flops
from spectralmoe_jax.models.build import abstract_segmenter, make_segmenter
from spectralmoe_jax.parameters import join, split
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import init_state, make_loss, make_train_step


class Program(NamedTuple):
    """A compiled program of ours.

    Attributes:
      run: the program.
      lowering: seconds to trace and lower it.
      compilation: seconds to compile it.
      temporaries: bytes.
      memory: bytes of arguments, results and temporaries; what results take over from arguments counts once.
    """

    run: Callable
    lowering: float
    compilation: float
    temporaries: int
    memory: int


def compiled(jitted: Any, *arguments: Any) -> Program:
    """Compile a jitted function for these arguments."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    lowered_at = time.perf_counter()
    run = lowered.compile()
    seconds = time.perf_counter() - lowered_at
    sizes = run.memory_analysis()
    temporaries = sizes.temp_size_in_bytes
    given, returned = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    memory = temporaries + given + returned - sizes.alias_size_in_bytes
    return Program(run, lowered_at - start, seconds, temporaries, memory)


class OurStep:
    """Our segmenter, its loss and its optimizer, on one batch.

    Attributes:
      structure: abstract segmenter.
      trainable, frozen: its parameters.
      optimizer: the optimizer.
      loss: the loss function.
      batch: the batch, on the device.
    """

    def __init__(
        self,
        case: Case,
        batch: dict[str, np.ndarray],
        clip_norm: float | None = None,
        weights: tuple[Any, Any] | None = None,
    ):
        """Make everything but the programs.

        Args:
          case: the sizes.
          batch: `image` (B, H, W, bands) and `label` (B, H, W).
          clip_norm: bound on the gradient norm, if any.
          weights: trainable and frozen parameters; random ones by default.
        """
        settings = case.segmenter()
        self.case, self.structure = case, abstract_segmenter(settings)
        self.trainable, self.frozen = split(make_segmenter(settings, seed=0)) if weights is None else weights
        rules = self.structure.optimizer_rules
        self.optimizer = make_optimizer(case.training(clip_norm), self.trainable, rules)
        self.loss = make_loss(self.structure, case.loss())
        self.batch, self.key = jax.device_put(batch), jax.random.key(0)

    def programs(self) -> dict[str, tuple[Program, Run]]:
        """Compile the rows of the step's table, each with a function that runs it."""
        given = (self.trainable, self.frozen, self.batch, self.key)
        forward = compiled(jax.jit(self.loss), *given)
        gradients = compiled(jax.jit(jax.value_and_grad(self.loss, has_aux=True)), *given)
        return {
            "forward": (forward, lambda: jax.block_until_ready(forward.run(*given))),
            "forward with gradients": (gradients, lambda: jax.block_until_ready(gradients.run(*given))),
            "whole step": self.whole_step(),
        }

    def whole_step(self) -> tuple[Program, Run]:
        """Compile the whole step, with a function that does the next one."""
        state = init_state(self.trainable, self.optimizer)
        rest = (self.frozen, self.batch, self.key)
        step = compiled(make_train_step(self.loss, self.optimizer), state, *rest)
        carry = [state]

        def one_step() -> Any:
            """Do the next step."""
            carry[0], metrics = step.run(carry[0], *rest)
            return jax.block_until_ready((carry[0], metrics))

        return step, one_step

    def flops(self) -> int:
        """Count the operations of the products in the traced step; nothing is compiled."""
        state = jax.eval_shape(lambda params: init_state(params, self.optimizer), self.trainable)
        step = make_train_step(self.loss, self.optimizer)
        return product_flops(step.trace(state, self.frozen, self.batch, self.key).jaxpr.jaxpr)

    def predictor(self, windows: int) -> Callable[[np.ndarray], np.ndarray]:
        """Compile raw tiles (B, S, S, bands) -> scores (B, S, S, C)."""

        def scores(trainable: Any, frozen: Any, tiles: jax.Array) -> jax.Array:
            """Scores with the given weights."""
            return join(self.structure, trainable, frozen).scores(tiles)

        shape = (windows, self.case.size, self.case.size, BANDS)
        weights = (self.trainable, self.frozen)
        run = jax.jit(scores).lower(*weights, jax.ShapeDtypeStruct(shape, np.uint8)).compile()
        return lambda tiles: np.asarray(run(*weights, tiles))
