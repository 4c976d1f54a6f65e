"""The peers' published formulas for one image and one layer, in float64 numpy."""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def over_positions(x):
    """Instance norm of (N, M): each token's column to mean 0 and variance 1."""
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def rein_change(p, f, depth=None, norm=None):
    """p: a branch's parameters of one layer by name; f, depth (N, D)."""
    tokens = p["tokens_a"] @ p["tokens_b"]
    logits = f @ tokens.T
    if depth is not None:
        logits = logits + depth @ tokens.T
    if norm == "logits":
        logits = over_positions(logits)
    similarity = softmax(logits / math.sqrt(f.shape[1]))
    if norm == "similarity":
        similarity = over_positions(similarity)
    u = similarity[:, 1:] @ (tokens[1:] @ p["W_T"] + p["b_T"])
    return (u + f) @ p["W_f"] + p["b_f"]


def rein(p, f, depth=None):
    return f + p["scale"] * rein_change(p["branch"], f, depth)


def set_layer(p, f, grid):
    h, w = grid
    spectrum = np.fft.fft2(f.reshape(h, w, -1), axes=(0, 1), norm="ortho").reshape(h * w, -1)
    spectrum.imag[np.abs(spectrum.imag) < 1e-12] = 0  # real by symmetry: its sign is rounding
    phase, amplitude = np.angle(spectrum), np.abs(spectrum)
    phase = rein_change(p["content"], phase)
    amplitude = rein_change(p["style"], amplitude, norm="logits")
    back = (amplitude * (np.cos(phase) + 1j * np.sin(phase))).reshape(h, w, -1)
    change = np.fft.ifft2(back, axes=(0, 1), norm="ortho").real
    return f + p["scale"] * change.reshape(h * w, -1)


LOW, HIGH = np.array([1, 1]) / 2**0.5, np.array([-1, 1]) / 2**0.5


def fada_layer(p, f, grid):
    """Every 2 x 2 patches are four numbers in the basis of the products of LOW and HIGH (rows, columns)."""
    h, w = grid
    image = f.reshape(h, w, -1)
    image = np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    bases = [np.outer(a, b) for a, b in ((LOW, LOW), (LOW, HIGH), (HIGH, LOW), (HIGH, HIGH))]
    tall, wide = image.shape[0] // 2, image.shape[1] // 2
    blocks = image.reshape(tall, 2, wide, 2, -1)
    low, *high = [np.einsum("ab,yaxbd->yxd", basis, blocks).reshape(tall * wide, -1) for basis in bases]
    low = rein_change(p["content"], low)
    high = rein_change(p["style"], np.concatenate(high), norm="similarity")
    parts = [low, *np.split(high, 3)]
    back = sum(
        np.einsum("ab,yxd->yaxbd", basis, part.reshape(tall, wide, -1))
        for basis, part in zip(bases, parts, strict=True)
    )
    change = back.reshape(2 * tall, 2 * wide, -1)[:h, :w]
    return f + p["scale"] * change.reshape(h * w, -1)


def link(tokens, transform, merge):
    """Queries of tokens (L, M, D): per feature the largest, mean and last over layers, side by side."""
    queries = np.stack([t @ transform[0] + transform[1] for t in tokens])
    rows = []
    for of_token in queries.transpose(1, 2, 0):
        rows.append([value for per in of_token for value in (per.max(), per.mean(), per[-1])])
    return np.array(rows) @ merge[0] + merge[1]


def bilinear(x, size):
    """(h, w, D) -> (*size, D), half-pixel centres, edges repeated."""
    for axis in (0, 1):
        n, m = x.shape[axis], size[axis]
        place = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, tuple(i for i in range(3) if i != axis))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, n - 1), axis) * share
    return x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def refinement(p, maps, scales):
    """What DepthForge adds to the finest map. maps: (h, w, D) each."""
    resized = [bilinear(x, (int(x.shape[0] * s), int(x.shape[1] * s))) for x, s in zip(maps, scales)]  # noqa: B905
    gated = []
    for x in resized:
        x = bilinear(x, resized[0].shape[:2])
        x = x * sigmoid(np.maximum(x @ p["reduce"][0] + p["reduce"][1], 0) @ p["expand"][0] + p["expand"][1])
        h, w, _ = x.shape
        around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        spatial = sum(
            around[i : i + h, j : j + w] @ p["spatial"][0][i, j] for i in range(3) for j in range(3)
        )
        gated.append(x * sigmoid(spatial + p["spatial"][1]))
    return resized[0], np.concatenate(gated, axis=-1) @ p["fuse"][0] + p["fuse"][1]


def layer_norm(x, scale, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias


def block(p, x, heads, eps, lora=None, adaptformer=None):
    """A DINOv2 block on (T, D). lora: (A_q, B_q, A_v, B_v, factor). adaptformer: (down, b, up, b, factor)."""
    width = x.shape[1]
    normed = layer_norm(x, p["norm1", "scale"], p["norm1", "bias"], eps)
    q, k, v = np.split(normed @ p["attention", "qkv", "kernel"] + p["attention", "qkv", "bias"], 3, axis=1)
    if lora is not None:
        a_q, b_q, a_v, b_v, factor = lora
        q, v = q + factor * (normed @ a_q @ b_q), v + factor * (normed @ a_v @ b_v)
    parts = []
    for head in range(heads):
        own = slice(head * width // heads, (head + 1) * width // heads)
        parts.append(softmax(q[:, own] @ k[:, own].T / math.sqrt(width // heads)) @ v[:, own])
    attended = np.concatenate(parts, axis=1) @ p["attention", "out", "kernel"] + p["attention", "out", "bias"]
    x = x + attended * p["scale1",]
    normed = layer_norm(x, p["norm2", "scale"], p["norm2", "bias"], eps)
    hidden = normed @ p["mlp", "first", "kernel"] + p["mlp", "first", "bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    y = x + (hidden @ p["mlp", "last", "kernel"] + p["mlp", "last", "bias"]) * p["scale2",]
    if adaptformer is not None:
        down, down_bias, up, up_bias, factor = adaptformer
        y = y + factor * (np.maximum(normed @ down + down_bias, 0) @ up + up_bias)
    return y
