"""Run as a program on 8 virtual devices: one step on every mesh, and what was found, as JSON.

usage: steps_on_meshes.py OUT.json
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from spectralmoe_jax.ahead_of_time.program_cost import collectives
from spectralmoe_jax.parameters import named_leaves
from tests.parallel.one_step import Step, tiny_config

MESHES = {"8x1x1": (8, 1, 1), "4x1x2": (4, 1, 2), "2x2x2": (2, 2, 2), "1x8x1": (1, 8, 1),
          "2x1x3": (2, 1, 3), "1x1x6": (1, 1, 6)}  # fmt: skip
DISPATCH = {"model.adapter.strategy": "dispatch", "model.adapter.top_k": 2}


def worst(ours, theirs):
    """The largest difference of any leaf, relative to the leaf's largest magnitude."""
    theirs = named_leaves(theirs)
    return max(
        float(np.abs(np.asarray(leaf) - theirs[name]).max() / max(np.abs(theirs[name]).max(), 1e-30))
        for name, leaf in named_leaves(ours).items()
    )


def one(values):
    state, metrics = jax.device_get(Step(tiny_config(**values), jax.devices()[:1])())
    return state.params, metrics


def main(out):
    found = {"meshes": {}}
    params, metrics = one({})
    for name, mesh in MESHES.items():
        step = Step(tiny_config(*mesh), jax.devices()[: int(np.prod(mesh))])
        if name == "2x2x2":
            crossing = collectives(step.hlo(), step.layout.mesh)
            found["collectives"] = [item._asdict() for item in crossing]
        state, ours = step()
        arrays = named_leaves({"state": state, "frozen": step.frozen})
        shares = {leaf: [list(array.shape), list(array.sharding.shard_shape(array.shape))]
                  for leaf, array in arrays.items()}  # fmt: skip
        state, ours = jax.device_get((state, ours))
        found["meshes"][name] = {
            "params": worst(state.params, params),
            "metrics": worst(ours, metrics),
            "loss": float(ours["loss"]),
            "shares": shares,
        }

    coordinates = one({"model.adapter.top_k": 2})
    dispatched = one(DISPATCH)
    found["dispatch"] = {"params": worst(dispatched[0], coordinates[0]),
                         "metrics": worst(dispatched[1], coordinates[1])}  # fmt: skip
    step = Step(tiny_config(2, 1, 2, **DISPATCH), jax.devices()[:4])
    found["dispatch_collectives"] = [item._asdict() for item in collectives(step.hlo(), step.layout.mesh)]
    state, ours = jax.device_get(step())
    found["dispatch_spread"] = {"params": worst(state.params, dispatched[0]),
                                "metrics": worst(ours, dispatched[1])}  # fmt: skip
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
