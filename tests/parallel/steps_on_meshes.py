"""One training step on each of some meshes of 8 virtual devices, compared with the step of one device.

usage: steps_on_meshes.py OUT.json PART...

A part is a mesh such as 2x1x4 (data x fsdp x expert), `dispatch`, `pmt`, `excluded` or `accumulated`.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from spectralmoe_jax.ahead_of_time.program_cost import collectives
from spectralmoe_jax.parameters import named_leaves
from tests.parallel.one_step import Step, tiny_config

TWO_EXPERTS = {"model.adapter.top_k": 2}
DISPATCH = TWO_EXPERTS | {"model.adapter.strategy": "dispatch"}
PLAIN_HEAD = {"kind": "pmt", "num_queries": 7, "blocks": 2, "mask_starts": (0, 0.5), "mask_ends": (0.5, 1)}


def largest_difference(ours, theirs):
    """The largest difference of any leaf, relative to the leaf's largest magnitude."""
    theirs = named_leaves(theirs)
    return max(
        float(np.abs(np.asarray(leaf) - theirs[name]).max() / max(np.abs(theirs[name]).max(), 1e-30))
        for name, leaf in named_leaves(ours).items()
    )


def differences(ours, theirs):
    """Differences of two results of `Step`, by part."""
    return {
        "params": largest_difference(ours[0].params, theirs[0].params),
        "metrics": largest_difference(ours[1], theirs[1]),
    }


def on_one_device(values):
    return jax.device_get(Step(tiny_config(**values), jax.devices()[:1])())


def on_mesh(mesh, wanted):
    """What a step on a mesh computes, where its arrays lie, and what its devices exchange."""
    step = Step(tiny_config(*mesh), jax.devices()[: int(np.prod(mesh))])
    crossing = collectives(step.hlo(), step.layout.mesh)
    found = step()
    arrays = named_leaves({"state": found[0], "frozen": step.frozen})
    shares = {leaf: [list(array.shape), list(array.sharding.shard_shape(array.shape))]
              for leaf, array in arrays.items()}  # fmt: skip
    found = jax.device_get(found)
    return differences(found, wanted) | {
        "loss": float(found[1]["loss"]),
        "shares": shares,
        "collectives": [item._asdict() for item in crossing],
    }


def dispatch():
    """Dispatch against expert coordinates, and on four devices against one."""
    dispatched = on_one_device(DISPATCH)
    spread = jax.device_get(Step(tiny_config(2, 1, 2, **DISPATCH), jax.devices()[:4])())
    return {
        "to coordinates": differences(dispatched, on_one_device(TWO_EXPERTS)),
        "to one device": differences(spread, dispatched),
    }


def plain_decoder():
    """The plain mask decoder on four devices against one, and its running statistics alone."""
    values = {"model.head": PLAIN_HEAD}
    spread = jax.device_get(Step(tiny_config(2, 2, 1, **values), jax.devices()[:4])())
    alone = on_one_device(values)
    norms = [found[0].params["head"]["levels"]["norm"] for found in (spread, alone)]
    return differences(spread, alone) | {"statistics": largest_difference(*norms)}


def excluded():
    """A loss without unlabelled pixels and with balanced classes, on eight devices against one."""
    settings = {"loss.unlabelled": "excluded", "loss.class_weights": (0.5, 1.0, 2.0, 0.7, 1.5)}
    spread = jax.device_get(Step(tiny_config(2, 2, 2, **settings), jax.devices()[:8])())
    return differences(spread, on_one_device(settings))


def accumulated():
    """A step in two parts with an average of the weights, on eight devices against one."""
    settings = {"train.accumulate": 2, "train.ema": 0.9}
    spread = jax.device_get(Step(tiny_config(2, 2, 2, **settings), jax.devices()[:8])())
    alone = on_one_device(settings)
    average = largest_difference(spread[0].average, alone[0].average)
    return differences(spread, alone) | {"average": average}


def main(out, *parts):
    wanted = on_one_device({})
    others = {"dispatch": dispatch, "pmt": plain_decoder, "excluded": excluded, "accumulated": accumulated}
    found = {
        part: others[part]() if part in others else on_mesh(tuple(map(int, part.split("x"))), wanted)
        for part in parts
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
