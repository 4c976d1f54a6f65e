"""Time of one adapter layer by number of experts, for both strategies: coordinates and dispatch.

  python benchmarks/expert_strategies.py [--experts 6,16,64] [--tokens 1024] [--width 1024] [--rounds 5]

Prints medians over `rounds` in milliseconds, forward and with the gradient of parameters and tokens. The
strategies take turns in each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.parameters import join, split

STRATEGIES = ("coordinates", "dispatch")


def main() -> None:
    """Print a line of times for each number of experts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", default="6,16,32,64,128")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=1)
    parser.add_argument("--preset", default="released")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    kind = jax.devices()[0].device_kind
    print(f"{kind}, jax {jax.__version__}, {arguments.preset}, k={arguments.top_k}")
    header = "".join(f"{name:>14}{'gradients':>14}" for name in STRATEGIES)
    print(f"{'experts':>8}{header}{'ratio':>8}{'ratio':>8}")
    for experts in map(int, arguments.experts.split(",")):
        times = measure(experts, arguments)
        ratios = [times["coordinates"][i] / times["dispatch"][i] for i in (0, 1)]
        columns = "".join(f"{value:14.1f}" for name in STRATEGIES for value in times[name])
        print(f"{experts:>8}{columns}{ratios[0]:8.2f}{ratios[1]:8.2f}", flush=True)


def measure(experts: int, arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Measure milliseconds (forward, with gradients) of both strategies, which take turns."""
    runs = {name: functions(experts, name, arguments) for name in STRATEGIES}
    times: dict[str, list[list[float]]] = {name: [[], []] for name in STRATEGIES}
    for _ in range(arguments.rounds):
        for name, pair in runs.items():
            for kind, run in enumerate(pair):
                start = time.perf_counter()
                jax.block_until_ready(run())
                times[name][kind].append(1e3 * (time.perf_counter() - start))
    return {name: (statistics.median(both[0]), statistics.median(both[1])) for name, both in times.items()}


def functions(
    experts: int, strategy: str, arguments: argparse.Namespace
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Compile one layer, forward and with gradients, for random parameters and tokens."""
    config = SpectralMoEConfig(
        preset=arguments.preset, num_experts=experts, top_k=arguments.top_k, strategy=strategy
    )
    adapter = SpectralMoE(config, layers=1, width=arguments.width, rngs=nnx.Rngs(0))
    values, _ = split(adapter)
    leaves, structure = jax.tree.flatten(values)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    values = structure.unflatten(
        [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )
    tokens = jax.random.normal(jax.random.key(2), (2, 1, arguments.tokens, arguments.width))

    def total(values, tokens):
        layer = join(adapter, values)
        weights = {name: leaf[0] for name, leaf in layer.stacked().items()}
        out = layer.layer(weights, tokens[0], tokens[1])
        return jnp.sum(out.tokens**2) + out.auxiliary_loss

    forward = jax.jit(total)
    backward = jax.jit(jax.grad(total, argnums=(0, 1)))
    for run in (forward, backward):
        jax.block_until_ready(run(values, tokens))
    return lambda: forward(values, tokens), lambda: backward(values, tokens)


if __name__ == "__main__":
    main()
