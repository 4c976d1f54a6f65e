"""Galileo's optical encoder in plain NumPy, float64, from the formulas of its publication and release.

One image at a time, loops where they make the formula plain; nothing of the project is used.
"""

import math

import numpy as np

GROUPS = {
    "S2_RGB": ["B2", "B3", "B4"], "S2_Red_Edge": ["B5", "B6", "B7"], "S2_NIR_10m": ["B8"],
    "S2_NIR_20m": ["B8A"], "S2_SWIR": ["B11", "B12"], "NDVI": [],
}  # fmt: skip
SHIFT = {
    "B2": -440.067415, "B3": -488.194993, "B4": -842.258609, "B5": -550.580418, "B6": 90.181885,
    "B7": 237.712680, "B8": 212.379363, "B8A": 341.339955, "B11": -57.043713, "B12": -485.954841,
}  # fmt: skip
DIV = {
    "B2": 3670.816576, "B3": 3653.195369, "B4": 4370.714894, "B5": 4188.882433, "B6": 4192.040644,
    "B7": 4574.761211, "B8": 4395.916711, "B8A": 4817.891020, "B11": 4583.909625, "B12": 3920.971936,
}  # fmt: skip


def keys(u):
    u = abs(u)
    if u < 1:
        return 1.5 * u**3 - 2.5 * u**2 + 1
    return -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2 if u < 2 else 0.0


def pseudo_inverse(p):
    """(p, 8): resizes a side of the stored kernels."""
    if p == 8:
        return np.eye(8)
    scale = 8 / p
    matrix = np.array([[keys((i + 0.5 - (j + 0.5) * scale) / scale) for j in range(p)] for i in range(8)])
    return np.linalg.pinv(matrix / matrix.sum(axis=0))


def layer_norm(x, weight, bias):
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def group_inputs(dn, bands):
    """Normalised channels (S, S, channels) of every visible group, from reflectance x 10000 (S, S, C)."""
    channel = {name: dn[..., index].astype(np.float64) for index, name in enumerate(bands)}
    found = {}
    for group, names in GROUPS.items():
        if names and all(name in channel for name in names):
            found[group] = np.stack([(channel[n] - SHIFT[n]) / DIV[n] for n in names], axis=-1)
    if "B8" in channel and "B4" in channel:
        total = channel["B8"] + channel["B4"]
        safe = np.where(total > 0, total, 1)
        found["NDVI"] = np.where(total > 0, (channel["B8"] - channel["B4"]) / safe, 0)[..., None]
    return found


def features(state, dn, bands, *, patch, month, resolution, heads, layers):
    """Tokens (h, w, G, D) before the first block, after every block, and after the last norm."""
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}
    width = state["norm.weight"].shape[0]
    quarter, axis = width // 4, width // 8
    resize = pseudo_inverse(patch)
    h, w = dn.shape[0] // patch, dn.shape[1] // patch
    embedded = []
    for group, x in group_inputs(dn, bands).items():
        kernel = np.einsum("pi,ocij,qj->ocpq", resize, state[f"space_time_embed.{group}.proj.weight"], resize)
        tokens = np.zeros((h, w, width))
        for r in range(h):
            for c in range(w):
                pixels = x[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                tokens[r, c] = np.einsum("ijc,ocij->o", pixels, kernel)
        tokens += state[f"space_time_embed.{group}.proj.bias"]
        row = 1 + list(GROUPS).index(group)
        step = resolution * patch / 10
        for r in range(h):
            for c in range(w):
                code = [state["s_t_channel_embed"][row]]
                code += [np.array([0.0] * (quarter // 2) + [1.0] * (quarter // 2))]
                angle = 2 * math.pi * month / 12
                code += [np.array([math.sin(angle)] * (quarter // 2) + [math.cos(angle)] * (quarter // 2))]
                for position in (c * step, r * step):
                    angles = [position * 10000 ** (-k / (2 * axis)) for k in range(axis // 2)]
                    code += [np.sin(angles), np.cos(angles)]
                tokens[r, c] += np.concatenate(code)
        embedded.append(tokens)
    z = np.stack(embedded, axis=2)  # (h, w, G, D)
    shape, z = z.shape, z.reshape(-1, width)
    found = [z]
    for layer in range(layers):
        prefix = f"blocks.{layer}."
        b = {name.removeprefix(prefix): value for name, value in state.items() if prefix in name}
        y = layer_norm(z, b["norm1.weight"], b["norm1.bias"])
        q, k, v = (
            (y @ b[f"attn.{n}.weight"].T + b[f"attn.{n}.bias"]).reshape(len(y), heads, -1) for n in "qkv"
        )
        logits = np.einsum("ihc,jhc->hij", q, k) / math.sqrt(width // heads)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhc->ihc", weights, v).reshape(len(y), width)
        z = z + mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = layer_norm(z, b["norm2.weight"], b["norm2.bias"])
        z = (
            z
            + gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]) @ b["mlp.fc2.weight"].T
            + b["mlp.fc2.bias"]
        )
        found.append(z)
    found.append(layer_norm(z, state["norm.weight"], state["norm.bias"]))
    return [z.reshape(shape) for z in found]
