"""Near-duplicates: images that show the same picture, re-saved, rescaled, a little cropped, brighter, or mirrored.

Two steps. Perceptual hashes (the DCT hash of imagehash, 64 bits) of each image, of its mirror image and of its centre
propose pairs. A proposed pair counts if the pictures also agree in detail once one is laid over the other: by their
correlation after the coarse light and shade is taken away, which photos of two similar things share too.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from refit.artifacts.prepared import Pixels
from refit.data.parallel import in_parallel
from refit.runtime.errors import UserError
from refit.runtime.progress import progress

SMALLEST = 32  # pixels; smaller images have so little detail that different ones are alike
SIMILAR = 0.9  # correlation of a near-duplicate; docs/audit.md has what photos of one thing and of two reached
EXTRA = ("cleanlab", "imagehash")  # the extra `audit`

_NEAR = 14  # bits of 64
_PROMISING = 0.7  # correlation at half the resolution, which is cheaper
_SIDE = 64  # pixels of the pictures that are laid over each other
_SCALES = (32, 31, 30, 29)  # of 32: how much of one picture the other shows, along an axis
_MARGIN = 0.03  # cut off each border for the hash of the centre, so that a crop is nearer to it than to the whole
_FLAT = 1.0  # grey levels; pictures with less detail show nothing, and all look alike
_BLOCK = 512  # images, or pairs, compared at a time

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Number = TypeVar("Number", np.uint8, np.float32)


class Pair(NamedTuple):
    first: int
    second: int
    similarity: float
    """Correlation in detail, up to 1; exactly 1 for identical pixels."""
    mirrored: bool = False


class _Print(NamedTuple):
    """What is kept of an image."""

    sha256: bytes
    hashes: npt.NDArray[np.uint64]
    """(4,): of the whole, its mirror image, the centre, its mirror image."""
    picture: Pixels
    """(64, 64), grey."""


def check_audit_packages() -> None:
    """Raises UserError if the packages of the extra `audit` are missing."""
    if not all(map(find_spec, EXTRA)):
        raise UserError(f"near-duplicates and label errors need the extra audit; run: uv pip install {' '.join(EXTRA)}")


def find_near_duplicates(image: Callable[[int], Pixels], images: int) -> list[Pair]:
    """The pairs of near-duplicates, the most alike first.

    image: gives the pixels at a position, uint8 (C, H, W), all of one size; it is called in other processes. images:
    their number. Identical images are paired with the first of them alone. Of images smaller than SMALLEST pixels, only
    identical ones are found. Raises UserError as check_audit_packages.
    """
    check_audit_packages()
    if not images:
        return []
    prints = list(progress(in_parallel(partial(_print_of, image), images), "hashing", images))
    first_with: dict[bytes, int] = {}
    for i, one in enumerate(prints):
        first_with.setdefault(one.sha256, i)
    pairs = [Pair(first_with[one.sha256], i, 1.0) for i, one in enumerate(prints) if first_with[one.sha256] != i]
    distinct = np.array(list(first_with.values()), dtype=np.int64)
    if min(image(0).shape[1:]) >= SMALLEST:
        pictures = np.stack([prints[i].picture for i in distinct])
        detailed = _detail(pictures).std(axis=(1, 2)) >= _FLAT
        distinct, pictures = distinct[detailed], pictures[detailed]
        hashes = np.array([prints[i].hashes for i in distinct], dtype=np.uint64).reshape(-1, 4)
        pairs += [pair._replace(first=int(distinct[pair.first]), second=int(distinct[pair.second]))
                  for pair in _confirmed(pictures, *_proposed(hashes))]  # fmt: skip
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def groups_of(pairs: Sequence[Pair], images: int) -> Numbers:
    """The number of the group of each of `images` images: those that pairs connect, also through others, share one."""
    from scipy.sparse import coo_array  # a slow import, as that of ndimage below: `prepare` rarely needs them
    from scipy.sparse.csgraph import connected_components

    first, second = ([pair[end] for pair in pairs] for end in (0, 1))
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(images, images))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _print_of(image: Callable[[int], Pixels], position: int) -> _Print:
    from imagehash import phash  # of the extra `audit`, and only this needs it

    pixels = np.ascontiguousarray(image(position).transpose(1, 2, 0))
    grey = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("L")
    x, y = _MARGIN * grey.width, _MARGIN * grey.height
    hashes = []
    for box in ((0, 0, grey.width, grey.height), (x, y, grey.width - x, grey.height - y)):
        small = grey.resize((32, 32), Image.Resampling.LANCZOS, box)  # as phash does, which then leaves it as it is
        for view in (small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            hashes.append(np.packbits(phash(view).hash).view(np.uint64)[0])
    picture = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    return _Print(hashlib.sha256(pixels.tobytes()).digest(), np.array(hashes), picture)


def _proposed(hashes: npt.NDArray[np.uint64]) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Pairs (M, 2) of near hashes, the lower position first, and whether they are near as mirror images (M,)."""
    pairs, mirrored = [np.empty((0, 2), np.int64)], [np.empty(0, np.bool_)]
    whole, centre = hashes[:, 0], hashes[:, 2]
    for start in range(0, len(hashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        for mirror in (0, 1):
            distance = np.bitwise_count(whole[block, None] ^ hashes[None, start:, mirror])
            for ours, theirs in ((whole, hashes[:, 2 + mirror]), (centre, hashes[:, mirror])):
                np.minimum(distance, np.bitwise_count(ours[block, None] ^ theirs[None, start:]), out=distance)
            first, second = np.nonzero(distance <= _NEAR)
            found = np.stack([first, second], axis=1)[first < second] + start
            pairs.append(found)
            mirrored.append(np.full(len(found), bool(mirror)))
    return np.concatenate(pairs), np.concatenate(mirrored)


def _confirmed(pictures: Pixels, pairs: Numbers, mirrored: npt.NDArray[np.bool_]) -> list[Pair]:
    """Those of the proposed pairs that agree in detail; of a pair that agrees both ways, the better one."""
    best: dict[tuple[int, int], Pair] = {}
    halves = pictures.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    for start in progress(range(0, len(pairs), _BLOCK), "comparing", -(-len(pairs) // _BLOCK)):
        block, flips = pairs[start : start + _BLOCK], mirrored[start : start + _BLOCK]
        a, b = halves[block[:, 0]], _flipped(halves[block[:, 1]], flips)
        score, place = _laid_over(a, b)
        swapped_score, swapped_place = _laid_over(b, a)
        swapped = swapped_score > score
        place[swapped] = swapped_place[swapped]
        for i in np.flatnonzero(np.maximum(score, swapped_score) >= _PROMISING):
            first, second = map(int, block[i])
            whole, part = pictures[first], _flipped(pictures[second][None], flips[i : i + 1])[0]
            similarity = _refined(*((part, whole) if swapped[i] else (whole, part)), place[i])
            found = Pair(first, second, similarity, bool(flips[i]))
            if (
                similarity >= SIMILAR
                and similarity > best.get((first, second), found._replace(similarity=0)).similarity
            ):
                best[first, second] = found
    return list(best.values())


def _flipped(pictures: npt.NDArray[Number], which: npt.NDArray[np.bool_]) -> npt.NDArray[Number]:
    """The pictures (M, H, W), of which those in `which` (M,) are mirrored."""
    flipped = pictures.copy()
    flipped[which] = pictures[which, :, ::-1]
    return flipped


def _laid_over(wholes: Floats, parts: Floats) -> tuple[Floats, Numbers]:
    """The best correlation of each part with a place in its whole, both (M, 32, 32), and that place (M, 3): its row and
    column, and its side."""
    best, place = np.full(len(wholes), -1, np.float32), np.zeros((len(wholes), 3), np.int64)
    detail = _detail(wholes, 1.5)
    for side in _SCALES:
        scaled = [np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BILINEAR)) for part in parts]
        template = _detail(np.stack(scaled), 1.5)[:, 1:-1, 1:-1]
        for row in range(_SCALES[0] - side + 1):
            for column in range(_SCALES[0] - side + 1):
                window = detail[:, row + 1 : row + side - 1, column + 1 : column + side - 1]
                score = _correlation(window, template)
                better = score > best
                best[better], place[better] = score[better], (row, column, side)
    return best, place


def _refined(whole: Pixels, part: Pixels, place: Numbers) -> float:
    """The correlation of `part` with the best place in `whole` near `place`, at full resolution."""
    row, column, side = (2.0 * place).tolist()
    picture, template, best = Image.fromarray(whole), _detail(part[None])[:, 2:-2, 2:-2], -1.0
    for step in (1.0, 0.5):
        boxes = [(x, y, x + size, y + size)
                 for size in (side - step, side, side + step) for x in (column - step, column, column + step)
                 for y in (row - step, row, row + step)
                 if min(x, y) >= 0 and max(x, y) + size <= _SIDE]  # fmt: skip
        parts = [np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box)) for box in boxes]
        scores = _correlation(_detail(np.stack(parts))[:, 2:-2, 2:-2], template)
        column, row, right, _ = boxes[int(scores.argmax())]
        side, best = right - column, max(best, float(scores.max()))
    return best


def _detail(pictures: npt.NDArray[Any], sigma: float = 3.0) -> Floats:
    """Pictures (M, H, W) without their coarse light and shade."""
    from scipy.ndimage import gaussian_filter

    pixels: Floats = pictures.astype(np.float32)
    pixels -= gaussian_filter(pixels, (0, sigma, sigma))
    return pixels


def _correlation(a: Floats, b: Floats) -> Floats:
    """Of each picture in a (M, H, W) with its own in b, or with the only one in it."""
    a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (a, b))
    norms = np.sqrt((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2)))
    return np.asarray((a * b).sum(axis=(1, 2)) / np.maximum(norms, 1e-6), dtype=np.float32)
