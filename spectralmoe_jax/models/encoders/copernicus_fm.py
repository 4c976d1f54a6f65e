"""Copernicus-FM (Wang et al. 2025, arXiv 2503.11849), the optical path.

The patch embedding is generated as in DOFA, from wavelength and bandwidth, for patches of 16 x 16 pixels, and
resized to other patches. Place, size of a token on the ground, and date of the images are encoded as sines
and cosines and added to all tokens; learned tokens stand for what is not known.

Grids may have any height and width: the authors' code takes square images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen, Linear, VariableType, trunc_normal
from spectralmoe_jax.models.encoders.dofa import NANOMETRES, Generated, KernelGenerator
from spectralmoe_jax.models.encoders.vit import VisionTransformer
from spectralmoe_jax.models.positions import resize_kernel

BASE_PATCH = 16  # side of the generated kernels in pixels
# Shortest and longest wavelength of the codes, in the units of what is encoded.
WAVELENGTH_CODE = (100.0, 1e9)  # nm
BANDWIDTH_CODE = (1.0, 1e9)  # nm
PLACE_CODE = (1e-4, 720.0)  # degrees
AREA_CODE = (1e-3, 5.1e8)  # square kilometres
DATE_CODE = (1.0, 365.25)  # days
KINDS = ("location", "area", "date")  # of metadata


class Metadata(NamedTuple):
    """Metadata of the images of a batch, B or 1 of each; None is unknown for all of them.

    Attributes:
      location: longitude and latitude in degrees, (B, 2).
      area: ground area of a token in square kilometres, (B,).
      days: days since 1 January 1970, (B,).
    """

    location: np.ndarray | None = None
    area: np.ndarray | None = None
    days: np.ndarray | None = None

    @classmethod
    def of(cls, config: EncoderConfig) -> Metadata:
        """Return what a configuration says, the same of all images."""
        known = (config.location, config.token_area, config.days)
        return cls(*(None if value is None else np.asarray([value]) for value in known))

    def codes(self, width: int) -> dict[str, np.ndarray | None]:
        """Return the code of each kind, (B, width) float32; None where it is unknown."""
        location = None
        if self.location is not None:
            # sums in float32 as published: they decide the finest sines
            place = np.asarray(self.location, np.float32) + np.array([180, 90], np.float32)
            each = fourier_code(place, *PLACE_CODE, width // 2).reshape(len(place), -1)
            location = np.pad(each, ((0, 0), (0, width - each.shape[1])))
        area = None if self.area is None else fourier_code(self.area, *AREA_CODE, width)
        date = None if self.days is None else fourier_code(self.days, *DATE_CODE, width)
        return dict(zip(KINDS, (location, area, date), strict=True))


class CopernicusFM(VisionTransformer):
    """The vision transformer of Copernicus-FM.

    Attributes:
      generator: makes the patch embedding; see `VisionTransformer`.
      metadata: learned tokens and linear layers of the metadata.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, param_dtype=param_dtype, rngs=rngs)
        kind = nnx.Param if config.trainable else Frozen
        self.metadata = MetadataTokens(config.width, kind, param_dtype, rngs)

    def _make_generator(self, param_dtype, rngs: nnx.Rngs) -> SpectralGenerator:
        config = self.config
        sizes = {"token_width": config.generator_width, "param_dtype": param_dtype}
        return SpectralGenerator(config.patch_size, config.width, **sizes, rngs=rngs)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C).

        The image is padded by one pixel on every side: patches of one or two pixels are more than the image
        has itself. Pixels that fill no patch are dropped.

        Raises:
          UserError: the image is smaller than a patch.
        """
        side = self.config.patch_size
        height, width = ((length + 2) // side for length in image_shape[1:3])
        if not height or not width:
            raise UserError(
                f"an image of {image_shape[1]}x{image_shape[2]} pixels is smaller than a patch of {side}: "
                "choose a larger crop or window"
            )
        return height, width

    def embed(self, image: Array, known: Metadata | None = None) -> Array:
        """Tokens before the first layer, (B, 1 + N, D): the class token, then patch tokens.

        Args:
          image: (B, H, W, C), normalised.
          known: metadata of the images; by default those of the configuration.
        """
        codes = (Metadata.of(self.config) if known is None else known).codes(self.config.width)
        outputs = self.metadata.outputs(self.metadata.inputs(codes))  # (B or 1, D) each
        added = outputs["location"] + outputs["area"] + outputs["date"]
        return super().embed(image) + added[:, None].astype(image.dtype)

    def _padded(self, image: Array) -> Array:
        """The image with one pixel of zeros on every side, without the pixels that fill no patch."""
        height, width = (count * self.config.patch_size for count in self.grid(image.shape))
        return jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, :height, :width]


class SpectralGenerator(KernelGenerator):
    """Patch kernels and bias from wavelengths and bandwidths, for patches of any size."""

    def __init__(self, patch_size: int, width: int, **kwargs):
        super().__init__(BASE_PATCH, width, **kwargs)
        self.resized = patch_size

    def __call__(self, wavelengths: Sequence[float], bandwidths: Sequence[float] = ()) -> tuple[Array, Array]:
        """Generate kernel (p, p, C, D) and bias (D,) for C wavelengths and bandwidths in micrometres."""
        made = self.made_of(wavelengths, bandwidths)
        return made.kernel, made.bias

    def made_of(self, wavelengths: Sequence[float], bandwidths: Sequence[float]) -> Generated:
        """Generate from bands, with the steps before it; the kernel has the size of the patches."""
        made = self.generate(self.codes(wavelengths, bandwidths))
        return made._replace(kernel=resize_kernel(made.kernel, self.resized))

    def codes(self, wavelengths: Sequence[float], bandwidths: Sequence[float]) -> Array:
        """Code of each band, (C, W)."""
        centres, widths = (np.asarray(lengths) * NANOMETRES for lengths in (wavelengths, bandwidths))
        codes = fourier_code(centres, *WAVELENGTH_CODE, self.token_width)
        codes = codes + fourier_code(widths, *BANDWIDTH_CODE, self.token_width)
        return jnp.asarray(codes, self.weight_tokens[...].dtype)


class MetadataTokens(nnx.Module):
    """A learned token and a linear layer for each kind of metadata.

    Attributes:
      location, area, date: of these kinds.
    """

    def __init__(self, width: int, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        for name in KINDS:
            setattr(self, name, MetadataToken(width, kind, param_dtype, rngs))

    def inputs(self, codes: Mapping[str, np.ndarray | None]) -> dict[str, Array]:
        """Inputs of the linear layers, (B or 1, D) for each kind: the code, or the token of the unknown."""
        modules = {name: getattr(self, name) for name in KINDS}
        return {
            name: module.token[...] if codes[name] is None else jnp.asarray(codes[name], module.token.dtype)
            for name, module in modules.items()
        }

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the linear layers, (B or 1, D) for each kind."""
        with jax.default_matmul_precision("highest"):
            return {name: getattr(self, name).linear(x) for name, x in inputs.items()}


class MetadataToken(nnx.Module):
    """Token (1, D) of the unknown, and a linear layer."""

    def __init__(self, width: int, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        self.token = kind(trunc_normal(rngs.params(), (1, width), param_dtype))
        self.linear = Linear(width, width, init=trunc_normal, kind=kind, param_dtype=param_dtype, rngs=rngs)


def fourier_code(values: np.ndarray | Sequence[float], low: float, high: float, width: int) -> np.ndarray:
    """Sines, then cosines of values at `width // 2` wavelengths from `low` to `high`, evenly spaced in log.

    Args:
      values: (...), rounded to float32; the arithmetic is float64.
      low: shortest wavelength, in the units of the values.
      high: longest wavelength.
      width: length of a code.

    Returns:
      (..., 2 * (width // 2)) float32.
    """
    wavelengths = np.logspace(np.log10(low), np.log10(high), width // 2)
    angles = 2 * np.pi * np.asarray(values, np.float32).astype(np.float64)[..., None] / wavelengths
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
