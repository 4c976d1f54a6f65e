"""The script that compares a training step with PyTorch, and its adapter against ours."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.parameters import join, split

ROOT = Path(__file__).resolve().parents[2]
LAYERS, BATCH, TOKENS, WIDTH = 2, 2, 12, 16
STEP = {"forward", "forward with gradients", "whole step"}
STAGES = {"encoders", "adapter", "pixel decoder", "decoder", "matching costs", "matching", "points",
          "whole loss", "loss terms (the rest)", "optimizer"}  # fmt: skip
KINDS = ("forward", "with gradients")
LAYER = {f"{reading}, {kind}" for reading in ("paper", "released") for kind in KINDS} | {"3 x product"}
PREDICTION, ATTENTION = {"ours", "PyTorch"}, set(KINDS)

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
Adapter = pytest.importorskip("benchmarks.torch_adapter").Adapter


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param(("--only=stages",), STAGES, marks=pytest.mark.slow),
        pytest.param((), STEP | STAGES | LAYER | PREDICTION | ATTENTION, marks=pytest.mark.slow),
        pytest.param(
            ("--head=linear", "--dtype=bfloat16", "--only=step,stages,prediction"),
            STEP | PREDICTION | {"encoders", "adapter", "linear head", "whole loss", "optimizer"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_tables_have_their_rows(options, rows):
    sizes = ("--size=64", "--scene=96", "--classes=8", "--present=4", "--rounds=1", "--threads=1")
    done = subprocess.run(
        [sys.executable, "benchmarks/train_step.py", "--tiny", *sizes, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert {line[:30].split("  median")[0].strip() for line in lines} >= rows
    sizes = next(line for line in lines if line.startswith("parameters that train"))
    ours, theirs = (part.split()[-1] for part in sizes.replace(", PyTorch", "; PyTorch").split(";"))
    assert ours == theirs


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def our_objective(adapter, noise, probe):
    """Function of parameters and tokens (J, B, N, D) to a scalar, and to what it sums."""

    def objective(values, tokens):
        model = join(adapter, values)
        results = []
        for layer in range(LAYERS):
            weights = jax.tree.map(lambda leaf, i=layer: leaf[i], model.stacked())
            results.append(model.layer(weights, *tokens, None if noise is None else noise[layer]))
        refined, balance = (jnp.stack(x) for x in list(zip(*results, strict=True))[:2])
        queries = model.queries()
        total = jnp.sum(refined * probe) + jnp.sum(queries**2) + jnp.mean(balance)
        return total, (refined, balance, queries)

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))


def torch_like(values, config):
    """PyTorch's adapter with the same weights, and its parameters by the names of ours."""
    theirs = Adapter(config, LAYERS, WIDTH)
    named = {}
    for name in ("token_to_feature", "delta_to_feature", "transform", "merge"):
        named[f"{name}/kernel"] = (getattr(theirs, name).weight, np.transpose)
        named[f"{name}/bias"] = (getattr(theirs, name).bias, np.asarray)
    named["scale"] = (theirs.scale, np.asarray)
    for name in ("experts_a", "experts_b", "w_gate", "w_noise"):
        attribute = name.removeprefix("experts_")
        for layer in range(LAYERS):
            named[f"{name}/{layer}"] = (getattr(theirs.layers[layer], attribute), np.asarray)
    assert {id(parameter) for parameter, _ in named.values()} == {id(p) for p in theirs.parameters()}
    with torch.no_grad():
        for name, (parameter, move) in named.items():
            parameter.copy_(torch.tensor(move(at(values, name))))
    return theirs, named


def at(values, name):
    """A leaf of nested dictionaries, or its layer, by a name such as `merge/kernel` or `w_gate/0`."""
    for part in name.split("/"):
        values = values[int(part)] if part.isdigit() else values[part]
    return np.asarray(values)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reading", ["paper", "released"])
def test_the_adapter_equals_ours(reading, training):
    config = SpectralMoEConfig(
        preset=reading, num_experts=3, num_tokens=6, rank=4, query_dim=8, scale_init=0.5
    )
    adapter = SpectralMoE(config, layers=LAYERS, width=WIDTH, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: 0.5 * jnp.asarray(normal(rng, leaf.shape)), split(adapter)[0])
    theirs, named = torch_like(values, config)
    tokens = normal(rng, (2, BATCH, TOKENS, WIDTH))
    noise = normal(rng, (LAYERS, 2, BATCH, TOKENS, 3)) if training else None
    probe = normal(rng, (LAYERS, BATCH, TOKENS, WIDTH))

    (_, ours), gradients = our_objective(adapter, noise, probe)(values, tokens)
    inputs = torch.tensor(tokens, requires_grad=True)
    draws = [None if noise is None else torch.tensor(noise[layer]) for layer in range(LAYERS)]
    results = [theirs(layer, *inputs, draws[layer]) for layer in range(LAYERS)]
    refined, balance = (torch.stack(x) for x in zip(*results, strict=True))
    queries = theirs.queries()
    for mine, other in zip(ours, (refined, balance, queries), strict=True):
        assert_close(mine, other.detach().numpy(), 1e-5)
    ((refined * torch.tensor(probe)).sum() + (queries**2).sum() + balance.mean()).backward()
    assert_close(gradients[1], inputs.grad.numpy(), 1e-4)
    for name, (parameter, move) in named.items():
        found = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        assert_close(move(at(gradients[0], name)), found, 1e-4)


def assert_close(ours, theirs, bound):
    """Largest difference relative to the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * max(np.abs(theirs).max(), 1e-6))
