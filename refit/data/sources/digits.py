"""The handwritten digits that come with scikit-learn."""

from functools import partial

import numpy as np
from PIL import Image

from refit.data.sources.source import LabelledImage, Listing, Source, listed, root_folder
from refit.params import DataParams

_CLASSES = tuple("0123456789")


def digits(data: DataParams) -> Source:
    root_folder(data)
    return Source(lambda: _CLASSES, _list_images)


def _list_images() -> Listing:
    from sklearn.datasets import load_digits  # a second of imports that only this source needs

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)  # 17 grey levels
    return listed(
        (
            LabelledImage(f"{number:04}", str(label), partial(Image.fromarray, image))
            for number, (image, label) in enumerate(zip(images, found.target, strict=True))
        ),
        "data.source = 'digits'",
        classes=_CLASSES,
    )
