"""How much of what is planted in a folder of photos `make audit` finds.

`python -m benchmarks.audit FOLDER WEIGHTS [--seed N]`: FOLDER has one folder per class, maybe in train, val and test;
WEIGHTS is the file of timm's EfficientNet-Lite0. 30 photos are moved to another class, and changed copies of 30 others
are added, to another split if there is one. Everything runs in a temporary folder; FOLDER is only read.
"""

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.workspace import empty_workspace
from refit.artifacts.files import read_csv
from refit.artifacts.paths import SUSPECTS
from refit.commands import audit
from refit.data.images import open_image
from refit.params import Params, check_params
from refit.params.reads import READS
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError
from stages import prepare

PLANTED = 30  # of each kind
FIRST = 100  # label suspects in which the planted labels should be
RECIPE = Path(__file__).parents[1] / "docs/recipes/photos.yaml"


def _saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Without 5 % of its width and of its height, at random sides."""
    width, height = (round(0.95 * side) for side in image.size)
    x, y = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
    return image.crop((int(x), int(y), int(x) + width, int(y) + height))


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-saved": lambda image, _: _saved(image, 40),
    "rescaled": lambda image, _: image.resize((image.width // 2, image.height // 2)),
    "cropped": _cropped,
    "brighter": lambda image, _: ImageEnhance.Brightness(image).enhance(1.25),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "cropped and re-saved": lambda image, random: _saved(_cropped(image, random), 60),
}


def main(folder: Path, weights: Path, seed: int) -> None:
    folder, weights = folder.resolve(), weights.resolve()
    with empty_workspace():
        shutil.copytree(folder, "data/raw/photos")
        Path("data/weights").mkdir()
        shutil.copy(weights, "data/weights")
        wrong, copies = plant(Path("data/raw/photos"), np.random.default_rng(seed))
        params = _params(f"data/weights/{weights.name}")
        prepare.main(params.only(*READS["prepare"]))
        began = time.monotonic()
        audit.main(params.only(*audit.READS))
        seconds = time.monotonic() - began
        rows = read_csv(SUSPECTS)
    ranks = {row["file"]: int(row["rank"]) for row in rows if row["kind"] == "label"}
    pairs = {frozenset((row["file"], row["other"])) for row in rows if row["kind"] == "duplicate"}
    labels_found = sum(ranks.get(name, FIRST + 1) <= FIRST for name in wrong)
    missed = [change for copy, (original, change) in copies.items() if frozenset((copy, original)) not in pairs]
    others = sum(not pair & copies.keys() for pair in pairs)
    print(f"wrong labels among the first {FIRST} suspects: {labels_found} of {len(wrong)}, "
          f"their ranks {sorted(ranks.get(name, 0) for name in wrong)} (0: no suspect)")  # fmt: skip
    print(f"near-duplicates found: {len(copies) - len(missed)} of {len(copies)}, missed: {missed}; "
          f"{others} other pairs are listed")  # fmt: skip
    print(f"the audit took {seconds:.0f} s")


def plant(
    root: Path, random: np.random.Generator, wrongly: int = PLANTED
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """The names of the photos that were moved to another class, each with its own class; and of the copies, each with
    the name of its original and how it was changed."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    classes = sorted({path.parent.name for path in files})
    splits = sorted({path.parent.parent for path in files})
    if len(files) < 10 * max(PLANTED, wrongly) or len(classes) < 2:
        raise UserError(f"{root} has {len(files)} photos of {len(classes)} classes; too few to plant {wrongly}")
    chosen = [files[i] for i in random.choice(len(files), wrongly + PLANTED, replace=False)]
    wrong, copies = {}, {}
    for number, path in enumerate(chosen[:wrongly]):
        label = random.choice([name for name in classes if name != path.parent.name])
        target = path.parent.parent / label / f"moved_{number}{path.suffix}"
        path.rename(target)
        wrong[target.relative_to(root).as_posix()] = path.parent.name
    for number, path in enumerate(chosen[wrongly:]):
        change = list(CHANGES)[number % len(CHANGES)]
        others = [split for split in splits if split != path.parent.parent] or splits
        copy = others[number % len(others)] / path.parent.name / f"copy_{number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open_image(path) as image:
            CHANGES[change](ImageOps.exif_transpose(image).convert("RGB"), random).save(copy, quality=90)
        copies[copy.relative_to(root).as_posix()] = (path.relative_to(root).as_posix(), change)
    return wrong, copies


def _params(weights: str) -> Params:
    values = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    values["data"] |= {"root": "data/raw/photos", "image_size": 224}  # what auto is for these weights
    values["model"]["weights"] = weights
    return check_params(values)


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the photos, one folder per class")
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help="of timm's EfficientNet-Lite0")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is planted where")
    run_command(main, parser)
