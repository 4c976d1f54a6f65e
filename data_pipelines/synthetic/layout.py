"""Layout of a generated scene: parcels, roads, houses, water, trees and their heights, before any light.

Everything man-made is drawn on a plan, an axis-aligned raster that is divided recursively like inherited
land. The plan is rotated and slightly bent into the scene. Water and trees follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import cv2
import numpy as np

OVERSAMPLING = 2
"""Fine pixels along the side of an image pixel, so that pixels on class edges are mixed."""


class Kind(IntEnum):
    """Kind of an object; `LABEL_OF_KIND` has its class."""

    CROP = 0
    MEADOW = 1
    FOREST_FLOOR = 2
    TREE = 3
    WATER = 4
    ROAD = 5
    ROOF = 6
    BARE = 7


LABEL_OF_KIND = np.array((0, 0, 1, 1, 2, 3, 4, 5), np.uint8)


@dataclass(frozen=True)
class Habits:
    """Land use of a place.

    Attributes:
      blocks: probabilities that a block is (farmland, village, industry, forest).
      parcels: probabilities that a parcel of farmland is (crop, meadow, bare, forest).
      parcel_side: largest side of a parcel in metres.
      hedges: share of the edges of meadows and crops that have trees.
    """

    blocks: tuple[float, float, float, float]
    parcels: tuple[float, float, float, float]
    parcel_side: float
    hedges: float


@dataclass(frozen=True)
class Layout:
    """Objects of a scene on a raster of fine pixels, whose first row is north.

    Attributes:
      objects: number of the object that covers each fine pixel, (S, S) uint16.
      height: height of the highest surface in metres, (S, S) float32.
      kind: `Kind` of each object, (O,).
      rows: direction of each object's crop rows in radians, (O,).
      spacing: side of a fine pixel in metres.
    """

    objects: np.ndarray
    height: np.ndarray
    kind: np.ndarray
    rows: np.ndarray
    spacing: float


def draw_layout(habits: Habits, size: int, pixel: float, rng: np.random.Generator) -> Layout:
    """Draw a random layout.

    Args:
      habits: land use.
      size: side of the scene in image pixels.
      pixel: side of an image pixel in metres.
      rng: random generator; the layout depends on nothing else.
    """
    spacing = pixel / OVERSAMPLING
    side = size * OVERSAMPLING
    plan = _Plan(int(side * 1.5), spacing, habits, rng)
    plan.divide((0, 0, plan.side, plan.side), 0)
    objects, height = _lay(plan, side, rng)
    shore = _shore(side, spacing, rng)
    _flood(objects, height, plan, shore)
    _plant(objects, height, plan, shore, rng)
    height += smooth_noise(side, 0.6 * side, rng) * 2.0
    return Layout(objects, height, np.array(plan.kind), np.array(plan.rows), spacing)


def smooth_noise(side: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of mean 0 and variance about 1 that varies over `scale` pixels, (side, side) float32."""
    grid = int(np.ceil(side / scale)) + 3
    coarse = rng.standard_normal((grid, grid), np.float32)
    fine = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return fine[int(scale) :, int(scale) :][:side, :side] * 1.3


@dataclass
class _Plan:
    """The man-made part of a scene before rotation, drawn as boxes (top, left, bottom, right).

    Attributes:
      side: in fine pixels.
      spacing: side of a fine pixel in metres.
      habits: land use.
      rng: random generator.
      kind: kind of each object.
      rows: direction of each object's crop rows in radians.
    """

    side: int
    spacing: float
    habits: Habits
    rng: np.random.Generator
    kind: list[Kind] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.objects = np.zeros((self.side, self.side), np.uint16)
        self.height = np.zeros((self.side, self.side), np.float32)
        self.turn = float(self.rng.uniform(0, np.pi))
        self.garden, self.road = self.new(Kind.MEADOW), self.new(Kind.ROAD)

    def new(self, kind: Kind) -> int:
        """Add an object and return its number."""
        along = self.turn + (np.pi / 2 if self.rng.random() < 0.5 else 0.0)
        self.kind.append(kind)
        self.rows.append(along)
        return len(self.kind) - 1

    def fine(self, metres: float) -> int:
        """Convert a length in metres to fine pixels."""
        return max(1, round(metres / self.spacing))

    def fill(self, box, identity: int, height: float = 0.0) -> None:
        """Fill a box with an object, up to a height in metres."""
        top, left, bottom, right = box
        self.objects[top:bottom, left:right] = identity
        self.height[top:bottom, left:right] = height

    def divide(self, box, depth: int) -> None:
        """Divide a box by roads into blocks, and fill each block with a use."""
        if depth < 3 and max(box[2] - box[0], box[3] - box[1]) > self.fine(120):
            first, second, gap = self._cut(box, self.fine(self.rng.uniform(8, 11) if depth < 2 else 6))
            self.fill(gap, self.road)
            self.divide(first, depth + 1)
            self.divide(second, depth + 1)
            return
        use = self.rng.choice(4, p=self.habits.blocks)
        (self._farmland, self._village, self._industry, self._forest)[use](box)

    def _cut(self, box, gap: int):
        """Return two parts of a box along its longer side, and the gap between them."""
        top, left, bottom, right = box
        share = self.rng.uniform(0.38, 0.62)
        if bottom - top >= right - left:
            at = top + int((bottom - top) * share)
            return (top, left, at, right), (at + gap, left, bottom, right), (at, left, at + gap, right)
        at = left + int((right - left) * share)
        return (top, left, bottom, at), (top, at + gap, bottom, right), (top, at, bottom, at + gap)

    def _farmland(self, box) -> None:
        longest = max(box[2] - box[0], box[3] - box[1])
        if longest > self.fine(self.habits.parcel_side * self.rng.uniform(0.8, 1.3)):
            track = self.rng.random() < 0.3
            first, second, gap = self._cut(box, self.fine(3.5) if track else 0)
            self.fill(gap, self.new(Kind.BARE) if track else self.garden)
            self._farmland(first)
            self._farmland(second)
            return
        kinds = (Kind.CROP, Kind.MEADOW, Kind.BARE, Kind.FOREST_FLOOR)
        self.fill(box, self.new(kinds[self.rng.choice(4, p=self.habits.parcels)]))

    def _forest(self, box) -> None:
        self.fill(box, self.new(Kind.FOREST_FLOOR))

    def _village(self, box) -> None:
        """Draw lanes, and lots with a house each along them."""
        if max(box[2] - box[0], box[3] - box[1]) > self.fine(62):
            first, second, lane = self._cut(box, self.fine(5.5))
            self.fill(lane, self.road)
            self._village(first)
            self._village(second)
            return
        ground = self.rng.random()
        self.fill(box, self.new(Kind.BARE) if ground < 0.2 else self.new(Kind.MEADOW))
        pitch = self.fine(self.rng.uniform(19, 25))
        for top in range(box[0], box[2] - pitch // 2, pitch):
            for left in range(box[1], box[3] - pitch // 2, pitch):
                if self.rng.random() < 0.88:
                    self._house(top, left, min(pitch, box[2] - top), min(pitch, box[3] - left))

    def _house(self, top: int, left: int, deep: int, wide: int) -> None:
        rng = self.rng
        long, short = self.fine(rng.uniform(12, 17)), self.fine(rng.uniform(8, 10.5))
        down, right = (long, short) if rng.random() < 0.5 else (short, long)
        down, right = min(down, deep - self.fine(3)), min(right, wide - self.fine(3))
        if min(down, right) < self.fine(6):
            return
        top += int(rng.uniform(0.2, 0.8) * (deep - down))
        left += int(rng.uniform(0.2, 0.8) * (wide - right))
        eaves = rng.uniform(3.5, 7.5)
        self.fill((top, left, top + down, left + right), self.new(Kind.ROOF), eaves)
        if rng.random() < 0.8:  # a gable along the longer side; otherwise the roof is flat
            half = min(down, right) / 2
            across = half - np.abs(np.arange(min(down, right)) + 0.5 - half)
            rise = (across * self.spacing * rng.uniform(0.5, 0.8)).astype(np.float32)
            self.height[top : top + down, left : left + right] += rise[:, None] if down < right else rise

    def _industry(self, box) -> None:
        """Draw halls with flat roofs on a paved yard."""
        if max(box[2] - box[0], box[3] - box[1]) > self.fine(75):
            first, second, strip = self._cut(box, self.fine(5))
            self.fill(strip, self.garden)
            self._industry(first)
            self._industry(second)
            return
        paved = self.rng.random() < 0.6
        self.fill(box, self.new(Kind.ROAD if paved else Kind.BARE))
        top, left, bottom, right = box
        margin = [self.fine(m) for m in self.rng.uniform(4, 11, 4)]
        hall = (top + margin[0], left + margin[1], bottom - margin[2], right - margin[3])
        if min(hall[2] - hall[0], hall[3] - hall[1]) > self.fine(10):
            self.fill(hall, self.new(Kind.ROOF), self.rng.uniform(6, 14))


def _lay(plan: _Plan, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotate and slightly bend the plan into the scene; return objects and height, (side, side) each."""
    bend = [smooth_noise(side, side / 2.0, rng) * side * 0.018 for _ in range(2)]
    across = np.arange(side, dtype=np.float32) - side / 2
    cos, sin = np.float32(np.cos(plan.turn)), np.float32(np.sin(plan.turn))
    column = cos * across + sin * across[:, None] + plan.side / 2 + bend[0]
    row = -sin * across + cos * across[:, None] + plan.side / 2 + bend[1]
    mirrored = cv2.BORDER_REFLECT
    objects = cv2.remap(plan.objects, column, row, cv2.INTER_NEAREST, borderMode=mirrored)
    # heights are interpolated, or rotated roofs would have steps
    return objects, cv2.remap(plan.height, column, row, cv2.INTER_LINEAR, borderMode=mirrored)


def _shore(side: int, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Return the distance in metres from a river, a lake or both, positive on land, (side, side)."""
    across = (np.arange(side, dtype=np.float32) - side / 2) * spacing
    extent = side * spacing
    wobble = smooth_noise(side, side / 10, rng)
    choice = rng.random()
    shore = np.full((side, side), np.inf, np.float32)
    if choice < 0.7:
        angle = rng.uniform(0, np.pi)
        along = np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * across[:, None]
        aside = -np.float32(np.sin(angle)) * across + np.float32(np.cos(angle)) * across[:, None]
        where = np.linspace(-extent, extent, 400)
        phase = rng.uniform(0, 2 * np.pi, 3)
        lengths = extent * np.array((0.9, 0.45, 0.22))
        course = np.sin(where[:, None] * 2 * np.pi / lengths + phase) @ (
            extent * np.array((0.07, 0.03, 0.01))
        )
        steepness = np.sqrt(1 + np.gradient(course, where) ** 2)
        offset = rng.uniform(-0.28, 0.28) * extent
        middle, slant = (np.interp(along, where, c).astype(np.float32) for c in (course, steepness))
        shore = np.abs(aside - middle - np.float32(offset)) / slant - rng.uniform(7, 17) - 1.2 * wobble
    if choice > 0.45:
        centre = rng.uniform(-0.4, 0.4, 2) * extent
        stretch = rng.uniform(0.6, 1.5)
        away = np.sqrt(((across - centre[0]) * stretch) ** 2 + ((across[:, None] - centre[1]) / stretch) ** 2)
        lake = away - rng.uniform(0.11, 0.2) * extent + 5 * wobble
        shore = np.minimum(shore, lake.astype(np.float32))
    return shore


def _flood(objects: np.ndarray, height: np.ndarray, plan: _Plan, shore: np.ndarray) -> None:
    """Put water over everything but bridges, and remove houses that would stand in it."""
    roofs = np.flatnonzero(np.array(plan.kind) == Kind.ROOF)
    objects[np.isin(objects, np.intersect1d(roofs, objects[shore < 3.0]))] = plan.garden
    objects[(shore < 0) & (objects != plan.road)] = plan.new(Kind.WATER)
    height[np.array(plan.kind)[objects] != Kind.ROOF] = 0.0


def _plant(
    objects: np.ndarray, height: np.ndarray, plan: _Plan, shore: np.ndarray, rng: np.random.Generator
) -> None:
    """Add trees with rounded crowns: forests, hedges, banks, and single ones in meadows and gardens."""
    kind = np.array(plan.kind)[objects]
    size, step = len(objects), plan.fine(4.3)
    chance = np.array((0.002, 0.02, 0.97, 0, 0, 0, 0, 0.006))[kind]
    open_land = (kind == Kind.CROP) | (kind == Kind.MEADOW)
    edge = cv2.morphologyEx(objects, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edge = cv2.dilate(edge.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    hedged = smooth_noise(size, size / 6, rng) > 1.2 - 2.4 * plan.habits.hedges
    chance[edge & hedged & open_land] = 0.75
    chance[(shore > 0) & (shore < 7) & (smooth_noise(size, size / 8, rng) > 0.1) & (kind != Kind.ROAD)] = 0.7
    built = ((kind == Kind.ROOF) | (kind == Kind.ROAD) | (kind == Kind.WATER)).astype(np.uint8)
    chance[cv2.dilate(built, np.ones((2 * plan.fine(1.5) + 1,) * 2, np.uint8)) > 0] = 0.0

    start = np.arange(0, size, step)
    spots = np.stack(np.meshgrid(start, start, indexing="ij"), -1).reshape(-1, 2)
    spots = np.minimum(spots + rng.integers(0, step, spots.shape), size - 1)
    spots = spots[rng.random(len(spots)) < chance[spots[:, 0], spots[:, 1]]]
    stands = smooth_noise(size, size / 4, rng)[spots[:, 0], spots[:, 1]] > 0.2  # which of the two halves
    trees = np.array([plan.new(Kind.TREE) for _ in range(32)])
    chosen = trees[rng.integers(0, 16, len(spots)) + 16 * stands]
    radii = rng.integers(plan.fine(1.9), plan.fine(3.6) + 1, len(spots))
    _crowns(objects, height, spots, radii, chosen, plan.spacing, rng.uniform(1.6, 2.6, len(spots)))


def _crowns(
    objects: np.ndarray,
    height: np.ndarray,
    spots: np.ndarray,
    radii: np.ndarray,
    trees: Sequence[int],
    spacing: float,
    slender: np.ndarray,
) -> None:
    """Draw crowns as half ellipsoids where nothing is higher.

    Args:
      objects: changed in place, (S, S).
      height: changed in place, in metres, (S, S).
      spots: row and column of each tree, (T, 2).
      radii: radius of each crown in fine pixels, (T,).
      trees: object number of each tree, (T,).
      spacing: side of a fine pixel in metres.
      slender: height of each crown's centre as a multiple of its radius, (T,).
    """
    domes = {}
    for radius in np.unique(radii):
        squared = (np.arange(-radius, radius + 1) / (radius + 0.5)) ** 2
        domes[radius] = np.sqrt(np.maximum(1 - squared - squared[:, None], 0)).astype(np.float32)
    size = len(objects)
    for (row, col), radius, tree, ratio in zip(spots, radii, trees, slender, strict=True):
        top, left = max(0, row - radius), max(0, col - radius)
        here = (slice(top, row + radius + 1), slice(left, col + radius + 1))
        dome = domes[radius][top - row + radius :, left - col + radius :]
        dome = dome[: size - top, : size - left]
        surface = np.where(dome > 0, radius * spacing * (ratio + dome), 0)
        higher = surface > height[here]
        objects[here][higher] = tree
        height[here][higher] = surface[higher]
