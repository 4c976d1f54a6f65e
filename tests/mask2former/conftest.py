"""The head of the released tiny model with its recorded features."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from spectralmoe_jax.config.model import Mask2FormerConfig
from spectralmoe_jax.mask2former.head import Mask2FormerHead
from spectralmoe_jax.weights.name_rules import read_tensors
from spectralmoe_jax.weights.released import head_rules

PREFIX = "decode_head."


class Golden:
    """Recorded arrays, the released head tensors, and our head that holds them."""

    def __init__(self, folder):
        name = folder / "released_tiny" / "dinov3_laplace_k1"
        self.arrays = np.load(name.with_suffix(".npz"))
        self.sizes = json.loads(name.with_suffix(".json").read_text())["head"]
        tensors = load_file(name.with_suffix(".safetensors"))
        self.tensors = {key: value for key, value in tensors.items() if key.startswith(PREFIX)}
        # the recorded features are resized already
        self.config = Mask2FormerConfig(
            num_classes=self.sizes["num_classes"],
            num_queries=self.sizes["num_queries"],
            width=self.sizes["feat_channels"],
            num_heads=self.sizes["num_heads"],
            encoder_layers=self.sizes["encoder_layers"],
            decoder_layers=self.sizes["decoder_layers"],
            encoder_ffn=self.sizes["encoder_ffn"],
            decoder_ffn=self.sizes["decoder_ffn"],
            points=self.sizes["deformable_points"],
            group_norm_groups=self.sizes["group_norm_groups"],
            scales=(1, 1, 1, 1),
        )
        self.features = [self.arrays[f"feature_{i}"].transpose(0, 2, 3, 1) for i in range(4)]

    def head(self, dtype=np.float32):
        """(graph, state) of a head with the released weights."""
        head = Mask2FormerHead(self.config, in_features=64, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        graph, state = nnx.split(head)
        shapes = {path: leaf.shape for path, leaf in flatten_dict(nnx.to_pure_dict(state)).items()}
        leaves = read_tensors(head_rules(path=()), shapes, self.tensors, file="golden")
        leaves = {path: leaf.astype(dtype) for path, leaf in leaves.items()}
        nnx.replace_by_pure_dict(state, unflatten_dict(jax.tree.map(jax.numpy.asarray, leaves)))
        return graph, state


@pytest.fixture(scope="session")
def golden(goldens) -> Golden:
    return Golden(goldens)


@pytest.fixture(scope="session")
def relative_error():
    """Largest difference relative to the largest magnitude."""
    return lambda got, want: np.abs(np.asarray(got) - want).max() / np.abs(want).max()
