"""Pictures as `data:` addresses, which a page carries in itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from spectralmoe_jax.prediction.panel import EXPERT_COLOURS

_MORE_EXPERTS = (
    (146, 73, 0), (182, 109, 255), (0, 73, 73), (255, 182, 219), (36, 255, 36), (146, 0, 0), (0, 109, 219),
    (182, 219, 255),
)  # fmt: skip
EXPERTS = (*EXPERT_COLOURS, *_MORE_EXPERTS)
"""Colours of experts, which colour-blind readers can tell apart as far as that goes for sixteen; repeated."""

IGNORED = (255, 255, 255)
RIGHT, WRONG = (226, 228, 230), (170, 20, 70)
_QUALITY = 82


def photo(image: np.ndarray) -> str:
    """(h, w, 3) uint8 as a JPEG."""
    return _encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


def drawing(image: np.ndarray) -> str:
    """(h, w, 3) uint8 of few colours as a PNG."""
    return _encoded(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encoded(image: np.ndarray, kind: str, options: Sequence[int]) -> str:
    done, data = cv2.imencode(kind, np.ascontiguousarray(image[..., ::-1]), options)
    assert done
    mime = {".jpg": "jpeg", ".png": "png"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(data.tobytes()).decode()}"


def classes(label: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """Class numbers (h, w) in the colours of the classes, 255 in white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    return drawing(table[label])


def errors(truth: np.ndarray, prediction: np.ndarray) -> str:
    """Right in grey, wrong in red, not labelled in white."""
    picture = np.where((truth == prediction)[..., None], RIGHT, WRONG)
    return drawing(np.where((truth == 255)[..., None], IGNORED, picture).astype(np.uint8))


def experts(numbers: np.ndarray) -> str:
    """Expert numbers (h, w) in the colours of the experts."""
    table = np.array(EXPERTS, np.uint8)
    return drawing(table[numbers % len(table)])
