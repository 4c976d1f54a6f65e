"""Tokens per expert, with as many queries in the head: half to eight times the base's number.

spectralmoe ablate configs/ablations/tokens.py --workdir runs/tokens
"""

from spectralmoe_jax.ablation import Grid, base_config


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    own = base_config(base).model.adapter.num_tokens
    return Grid(
        title="Tokens an expert, and queries",
        base=base,
        variants={
            f"m = {tokens}": {"model.adapter.num_tokens": tokens, "model.head.num_queries": tokens}
            for tokens in (own // 2, own, 2 * own, 4 * own, 8 * own)
        },
        reference=f"m = {own}",
    )
