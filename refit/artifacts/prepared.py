"""Read and write the prepared data set.

It is a folder with `SPLIT_images.npy`, uint8 (N, C, H, W), and `SPLIT_labels.npy`, int64 (N,), for each split;
`dataset.json`; and `manifest.parquet`, one row per image. A split is one array, so a batch is one indexing operation.
Large arrays are memory-mapped. If `data.storage` is encoded, `SPLIT_index.npy` and the shards in `SPLIT_images/` are in
the place of `SPLIT_images.npy`, as encoded.py says. If the source gives the training images different weights,
`train_weights.npy` has them, float32 (N,).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from refit.artifacts.encoded import EncodedImages
from refit.artifacts.files import read_json
from refit.artifacts.paths import PREPARED
from refit.params.data import Resize
from refit.runtime.errors import UserError

Color = Literal["grey", "rgb"]
Pixels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]
Images = Pixels | EncodedImages

FORMAT = 1
DEFAULT_RESIZE: Resize = "crop"
READ_AT_ONCE = (
    2 * 2**30
)  # bytes; larger files are mapped, and reading their pages in random order is several times slower


@dataclass(frozen=True)
class Split:
    images: Images
    """uint8 (N, C, H, W); memory-mapped if it is large."""
    labels: npt.NDArray[np.int64]
    """(N,)."""
    weights: Weights | None = None
    """(N,), with a mean of 1: how much each image counts in the training loss. None: all the same."""

    def first(self, images: int) -> "Split":
        return Split(self.images[:images], self.labels[:images])


@dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset.json."""

    format: int
    source: str
    classes: list[str]
    color: Color
    shape: list[int]
    """C, H, W of every image."""
    counts: dict[str, int]
    """Images in each split."""
    mean: list[float]
    """Of the train split, by channel, with pixels scaled to 0..1."""
    std: list[float]
    sha256: str
    """Of the images and labels of all splits: identifies the data set."""
    resize: Resize = DEFAULT_RESIZE
    """How the images were made square: the same has to be done to new ones."""

    def as_json(self) -> dict[str, object]:
        values = asdict(self)
        if self.resize == DEFAULT_RESIZE:  # as in the files from before there was a choice
            del values["resize"]
        return values


def read_info(folder: Path = PREPARED) -> DatasetInfo:
    """Raises UserError if there is no prepared data set, or it has another format."""
    path = folder / "dataset.json"
    values = read_json(path, "dvc repro prepare")
    if values.get("format") != FORMAT:
        raise UserError(f"{path} has format {values.get('format')!r}, expected {FORMAT}; run: dvc repro prepare")
    return DatasetInfo(**values)


class ManifestRow(NamedTuple):
    """An image of the prepared data set."""

    name: str
    split: str
    label: str
    """Its class."""
    sha256: str
    """Of its pixels."""
    width: int
    """Pixels of the raw image, after EXIF orientation."""
    height: int


def read_manifest(file: str | Path | BinaryIO = PREPARED / "manifest.parquet") -> list[ManifestRow]:
    """The images of all splits, in the order of their rows."""
    from pyarrow.parquet import read_table

    columns = read_table(file).to_pydict()
    names = ("name", "split", "class", "sha256", "width", "height")
    return [ManifestRow(*values) for values in zip(*(columns[name] for name in names), strict=True)]


def read_names(split: str, folder: Path = PREPARED) -> list[str]:
    """The name of each image of a split, in the order of its rows."""
    return _read_column("name", [split], folder)


def read_hashes(*splits: str, folder: Path = PREPARED) -> list[str]:
    """The sha256 of each image's pixels, in the order of the rows of these splits."""
    return _read_column("sha256", splits, folder)


def _read_column(column: str, splits: Sequence[str], folder: Path) -> list[str]:
    from pyarrow.parquet import read_table  # a slow import that most callers of this module do not need

    manifest = read_table(folder / "manifest.parquet", columns=[column, "split"]).to_pydict()
    return [value for value, split in zip(manifest[column], manifest["split"], strict=True) if split in splits]


def read_split(name: str, folder: Path = PREPARED, *, mapped: bool = False) -> Split:
    """The images and labels of `train`, `val` or `test`. If `mapped`, the images are not read before they are used."""
    labels, images = np.load(folder / f"{name}_labels.npy"), folder / f"{name}_images.npy"
    file = folder / f"{name}_weights.npy"
    weights = np.load(file) if file.exists() else None
    if not images.exists():
        channels, height, width = read_info(folder).shape
        return Split(EncodedImages(folder, name, (channels, height, width)), labels, weights)
    # Mapped copy-on-write, because PyTorch has no read-only tensors; nothing writes to them.
    mode: Literal["c"] | None = "c" if mapped or images.stat().st_size > READ_AT_ONCE else None
    return Split(np.load(images, mmap_mode=mode), labels, weights)


def pixels_in(folder: Path, rows: Sequence[ManifestRow]) -> Callable[[str], Pixels]:
    """A function from the name of an image to its pixels, (C, H, W)."""
    splits = {split: read_split(split, folder, mapped=True).images for split in {row.split for row in rows}}
    counted: Counter[str] = Counter()
    places = {}
    for row in rows:
        places[row.name] = row.split, counted[row.split]
        counted[row.split] += 1

    def pixels(name: str) -> Pixels:
        split, place = places[name]
        image: Pixels = splits[split][place]
        return image

    return pixels


def write_pixels(folder: Path, split: str, contents: Iterable[bytes], shape: tuple[int, int, int, int]) -> None:
    """Write the pixels of a split's images, one after the other. `shape`: N, C, H, W."""
    with (folder / f"{split}_images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.writelines(contents)
