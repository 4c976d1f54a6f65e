"""Keys that a configuration may leave out: what they default to, and what they take.

A configuration file says what matters for it. All else has a default here and can still be given on the
command line, as `--config.data.corrupt=skip`; only what is given is stored with a run. Code reads such a
key with `.get(key, default)`, or through a dataclass whose defaults are these.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Names = tuple[str, ...]
Numbers = tuple[float, ...]


class Key(NamedTuple):
    """`kind` is a type hint as `configuration.from_config` understands it."""

    kind: Any
    default: Any = None


_TOP = {
    "sensor": Key(str | None),
    "stated_wavelengths": Key(dict | None),
    "streams": Key(dict | None),
    "weight": Key(float, 1.0),
}

_DATA = {
    "benchmark": Key(str | None),
    "cache_bytes": Key(int, 512 << 20),
    "class_temperature": Key(float | None),
    "corrupt": Key(str, "stop"),
    "file_bands": Key(Names | None),
    "holdout": Key(float, 0.0),
    "holdout_domains": Key(Names | None),
    "holdout_seed": Key(int, 0),
    "ignore_colours": Key(tuple, ()),
    "ignore_values": Key(tuple, ()),
    "label_attribute": Key(str | None),
    "label_layer": Key(str, ""),
    "label_values": Key(tuple | None),
    "min_labelled": Key(float, 0.0),
    "scene_seed": Key(int, 0),
    "scene_size": Key(int, 256),
    "scenes_source": Key(int, 24),
    "scenes_target": Key(int, 8),
    "sensors": Key(Names | None),
    "threads": Key(int, 2),
    "tile": Key(int | None),
    "weights": Key(Numbers | None),
    "workers": Key(int, 0),
}

_AUGMENT = {
    "scale": Key(tuple[float, float], (0.5, 2.0)),
    "scale_step": Key(float, 0.1),
    "max_edge": Key(int, 1024),
    "max_class_share": Key(float, 0.75),
    "flip": Key(float, 0.5),
    "vertical_flip": Key(float, 0.0),
    "turns": Key(bool, False),
    "gain": Key(float, 0.0),
    "offset": Key(float, 0.0),
    "drop_bands": Key(float, 0.0),
    "tilt": Key(float, 0.0),
}

_ENCODER = {
    "preset": Key(str | None),
    "weights": Key(str | None),
    "kind": Key(str, "dinov3"),
    "width": Key(int, 1024),
    "layers": Key(int, 24),
    "heads": Key(int, 16),
    "patch_size": Key(int, 16),
    "mlp_ratio": Key(float, 4.0),
    "mlp_width": Key(int, 0),
    "ffn": Key(str, "mlp"),
    "qkv_bias": Key(bool, True),
    "storage_tokens": Key(int, 0),
    "table_size": Key(int, 32),
    "table_antialias": Key(bool, False),
    "rope_base": Key(float, 100.0),
    "norm_eps": Key(float, 1e-5),
    "layer_scale": Key(float, 1e-5),
    "untied_norms": Key(Names, ()),
    "wavelengths": Key(Numbers, ()),
    "extra_bands": Key(str, "modulo"),
    "window": Key(int, 14),
    "global_every": Key(int, 3),
    "neck_width": Key(int, 256),
    "trainable": Key(bool, False),
}

_ADAPTER = {
    "preset": Key(str, "paper"),
    "num_experts": Key(int, 6),
    "top_k": Key(int, 1),
    "num_tokens": Key(int, 100),
    "rank": Key(int | tuple[int, ...], 16),
    "query_dim": Key(int, 256),
    "gating": Key(str, "laplace"),
    "distance": Key(str | None),
    "token_map": Key(str | None),
    "combination": Key(str | None),
    "fusion": Key(str | None),
    "fusion_value": Key(str | None),
    "router": Key(str, "dual"),
    "use_depth": Key(bool, True),
    "balance": Key(str | None),
    "balance_over_modalities": Key(str | None),
    "balance_weight": Key(float | None),
    "full_softmax": Key(bool, False),
    "noise_epsilon": Key(float, 1e-2),
    "scale_init": Key(float, 1e-3),
    "strategy": Key(str, "auto"),
}

_TOKENS = {
    "num_tokens": Key(int, 100),
    "rank": Key(int, 16),
    "query_dim": Key(int, 256),
    "scale_init": Key(float, 1e-3),
    "link_query_features": Key(bool, False),
}

_HEAD = {
    "num_queries": Key(int, 100),
    "width": Key(int, 256),
    "num_heads": Key(int, 8),
    "encoder_layers": Key(int, 6),
    "decoder_layers": Key(int, 9),
    "encoder_ffn": Key(int, 1024),
    "decoder_ffn": Key(int, 2048),
    "points": Key(int, 4),
    "group_norm_groups": Key(int, 32),
    "scales": Key(Numbers, (4.0, 2.0, 1.0, 0.5)),
}

_LOSS = {
    "class_weight": Key(float, 2.0),
    "mask_weight": Key(float, 5.0),
    "dice_weight": Key(float, 5.0),
    "no_object_weight": Key(float, 0.1),
    "num_points": Key(int, 12544),
    "oversample_ratio": Key(float, 3.0),
    "importance_sample_ratio": Key(float, 0.75),
}

_PARALLEL = {
    "data": Key(int, -1),
    "fsdp": Key(int, 1),
    "expert": Key(int, 1),
    "rules": Key(tuple[tuple, ...] | None),
}

_TRAIN = {
    "batch_size": Key(int, 8),
    "learning_rate": Key(float, 1e-4),
    "weight_decay": Key(float, 0.05),
    "betas": Key(tuple[float, float], (0.9, 0.999)),
    "eps": Key(float, 1e-8),
    "power": Key(float, 0.9),
    "warmup_steps": Key(int, 0),
    "clip_norm": Key(float | None),
    "log_every": Key(int, 50),
    "evaluate_every": Key(int, 1000),
    "checkpoint_every": Key(int, 500),
}


class Choice(NamedTuple):
    """Kinds that a section may be of: `default` where it has no `kind`, and the keys that each has. A kind
    with a colon is a user's own: its keys are known once it is loaded."""

    default: str
    kinds: dict[str, dict[str, Key]]


CHOICES = {
    "model.adapter": Choice(
        "spectral_moe",
        {
            "spectral_moe": _ADAPTER,
            "none": {},
            "full": {},
            "bitfit": {},
            "rein": _TOKENS,
            "depthforge": _TOKENS | {"gate_width": Key(int, 64), "maps": Key(int, 4)},
            "set": _TOKENS,
            "fada": _TOKENS,
            "lora": {"lora_rank": Key(int, 8), "lora_alpha": Key(float, 8.0)},
            "adaptformer": {"bottleneck": Key(int, 64), "branch_scale": Key(float, 0.1)},
            "vpt": {"num_prompts": Key(int, 150)},
        },
    ),
    "model.head": Choice("mask2former", {"mask2former": _HEAD, "linear": {}}),
}

_SECTIONS: dict[str, dict[str, Key]] = {
    "data": _DATA,
    "augment": _AUGMENT,
    "model": {"weights": Key(str | Names | None)},
    "model.visual": _ENCODER,
    "model.depth": _ENCODER | {"bands": Key(Names | None)},
    "model.adapter": {"kind": Key(str, "spectral_moe")} | _ADAPTER,
    "model.head": {"kind": Key(str, "mask2former")} | _HEAD,
    "loss": _LOSS,
    "train": _TRAIN,
    "parallel": _PARALLEL,
    "evaluate": {"batch_size": Key(int, 8)},
}

OPTIONAL: dict[str, Key] = _TOP | {
    f"{section}.{name}": key for section, keys in _SECTIONS.items() for name, key in keys.items()
}
"""All of them by dotted key, of sections with a `kind` those of the default one. A new section is a table
above and a line in `_SECTIONS`; the section itself may then be missing from a configuration."""


def keys_of_kind(section: str, kind: str) -> dict[str, Key] | None:
    """The keys that a section of this kind has, `kind` apart; None for a kind that is not known here."""
    return CHOICES[section].kinds.get(kind)


def optional_key(dotted: str, kinds: Mapping[str, str]) -> Key | None:
    """The optional key of this name; of sections in `kinds`, as sections of that kind have it."""
    section, _, name = dotted.rpartition(".")
    if name == "kind" or section not in kinds:
        return OPTIONAL.get(dotted)
    known = keys_of_kind(section, kinds[section])
    return Key(Any) if known is None else known.get(name)


def optional_in(section: str, kinds: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
    """Names of optional keys, and of sections with some, that stand directly in `section` ("" is the top)."""
    if section in kinds:
        return ("kind", *(keys_of_kind(section, kinds[section]) or {}))
    start = f"{section}." if section else ""
    below = (key.removeprefix(start) for key in OPTIONAL if key.startswith(start))
    return tuple(dict.fromkeys(key.partition(".")[0] for key in below))
