"""The formulas of the adapter (arXiv 2603.13352, section 3) in all d dimensions, one expert at a time.

This is the oracle that the product's evaluation in expert coordinates is held against.
"""

import jax
import jax.numpy as jnp


def layer(params, visual, depth, noise, config):
    """Refined visual tokens (B, N, D) and the layer's balance loss."""
    modalities = [visual] + ([depth] if config.use_depth else [])
    updates, balances = [], []
    for j, f in enumerate(modalities):
        gates, balance = gate(params, f, None if noise is None else noise[j], j, config)
        updates.append(combined(params, f, gates, config))
        balances.append(balance)
    total = sum(balances)
    if config.balance_over_modalities == "mean":
        total = total / len(balances)
    d = visual.shape[-1]
    delta = fused(*updates, config, d) if config.use_depth else updates[0]
    w_d, b_d = params["delta_to_feature"]
    return visual + params["scale"] * ((delta + visual) @ w_d + b_d), config.balance_weight * total


def gate(params, f, noise, j, config):
    router = j if config.router == "dual" else 0
    w, w_noise = params["w_gate"][router], params["w_noise"][router]
    difference = f[:, :, :, None] - w  # (B, N, D, E)
    if config.gating == "laplace" and config.distance == "l1":
        clean = -jnp.abs(difference).sum(2)
    elif config.gating == "laplace":
        clean = -jnp.sqrt((difference**2).sum(2))
    elif config.gating == "gaussian":
        clean = -(difference**2).sum(2)
    else:
        clean = f @ w
    logits, k = clean, config.top_k
    if noise is not None:
        deviation = jnp.log1p(jnp.exp(f @ w_noise)) + config.noise_epsilon
        logits = clean + noise * deviation
    ordered = jnp.sort(logits, axis=-1)[..., ::-1]
    keep = logits >= ordered[..., k - 1 : k]
    exponent = jnp.exp(logits - ordered[..., :1])
    below = (
        exponent.sum(-1, keepdims=True) if config.full_softmax else (exponent * keep).sum(-1, keepdims=True)
    )
    gates = jnp.where(keep, exponent / below, 0.0)
    balance = variation(gates.sum((0, 1)))
    if config.balance == "importance_and_load":
        if noise is not None and k < config.num_experts:
            others = jnp.where(keep, ordered[..., k : k + 1], ordered[..., k - 1 : k])
            load = jax.scipy.stats.norm.cdf((clean - others) / deviation).sum((0, 1))
        else:
            load = (gates > 0).sum((0, 1)).astype(f.dtype)
        balance = balance + variation(load)
    return gates, balance


def variation(x):
    if len(x) == 1:
        return jnp.zeros(())
    return ((x - x.mean()) ** 2).sum() / (len(x) - 1) / (x.mean() ** 2 + 1e-10)


def expert_update(params, f, e, config):
    """dz_e (B, N, D) of expert e."""
    tokens = params["experts_a"][e] @ params["experts_b"][e]  # (M, D)
    if config.token_map == "dot":
        s = f @ tokens.T
    else:
        s = f.sum(-1)[..., None] * tokens.sum(-1)
    p = jax.nn.softmax(s / f.shape[-1] ** 0.5, axis=-1)
    w_t, b_t = params["token_to_feature"]
    return p[..., 1:] @ (tokens[1:] @ w_t + b_t)


def combined(params, f, gates, config):
    updates = [expert_update(params, f, e, config) for e in range(config.num_experts)]
    if config.combination == "gated_sum":
        return sum(gates[..., e, None] * update for e, update in enumerate(updates))
    chosen = [jnp.where(gates[..., e, None] > 0, jnp.exp(update), 0.0) for e, update in enumerate(updates)]
    return jnp.log(sum(chosen))


def fused(d_v, d_d, config, width):
    a = width**-0.5
    if config.fusion == "add":
        return d_v + d_d
    if config.fusion == "none":
        return d_v
    if config.fusion == "cross_attention":
        value = d_d if config.fusion_value == "depth" else d_v
        return jax.nn.softmax(d_v @ d_d.swapaxes(1, 2) * a, axis=-1) @ value
    w = jax.nn.softmax(d_d @ d_v.swapaxes(1, 2) * a, axis=-1)
    return jnp.stack([jnp.diag(one) for one in w])[..., None] * d_v
