"""Pictures of what an encoder makes of images."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from refit.artifacts.prepared import Split
from refit.reports.plots import DPI, WIDTH, as_png, headline

MOST_NAMED = 20  # classes
SHOWN = 8  # images made again


def embedding_pictures(
    system: pl.LightningModule, outputs: Mapping[str, Tensor], split: Split, classes: Sequence[str]
) -> dict[str, bytes]:
    """PNG files by name: a map of the outputs called `embedding`, (N, D), where there are any that span a plane; and
    some images of `split` made again, where the system has `reconstruct`, uint8 images (N, C, H, W) to such images."""
    pictures = {}
    if "embedding" in outputs and _span_a_plane(outputs["embedding"]):
        labels = [classes[label] for label in split.labels]
        pictures["embedding_map"] = embedding_map(outputs["embedding"].numpy(), labels)
    if reconstruct := getattr(system.eval(), "reconstruct", None):
        some = split.images[:: max(1, len(split.images) // SHOWN)][:SHOWN]
        with torch.no_grad():
            again = reconstruct(torch.from_numpy(some).to(system.device))
        pictures["reconstructions"] = reconstructions(some, again.cpu().numpy())
    return pictures


def _span_a_plane(embeddings: Tensor) -> bool:
    images, dimensions = embeddings.shape
    return images > 2 and dimensions > 1 and not bool((embeddings == embeddings[0]).all())


@as_png
def reconstructions(images: NDArray[np.uint8], again: NDArray[np.uint8]) -> Figure:
    """Images, (N, C, H, W), above what was made of their embeddings."""
    tile = WIDTH / len(images)
    figure = Figure(figsize=(WIDTH, 2 * tile + 0.6))
    enlarged = max(images.shape[2:]) <= tile * DPI
    for row, pixels in zip(figure.subplots(2, len(images), squeeze=False), (images, again), strict=True):
        for axes, image in zip(row, pixels, strict=True):
            axes.set_axis_off()
            shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if enlarged else "auto")
    headline(figure, "Test images, and below them what their embeddings hold")
    return figure


@as_png
def embedding_map(embeddings: NDArray[np.float32], labels: Sequence[str]) -> Figure:
    """Embeddings, (N, D), on their two principal components; `labels` name each image's class."""
    pca = PCA(2, svd_solver="full").fit(embeddings)
    points = pca.transform(embeddings)
    names = sorted(set(labels))
    figure = Figure(figsize=(WIDTH, 0.75 * WIDTH))
    axes = figure.subplots()
    of_class = np.array(labels)
    for number, name in enumerate(names):
        mine = points[of_class == name]
        colour = colormaps["tab20" if len(names) > 10 else "tab10"](number % 20)
        axes.scatter(mine[:, 0], mine[:, 1], s=7, alpha=0.7, linewidths=0, color=colour, label=name)
    if len(names) <= MOST_NAMED:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    first, second = pca.explained_variance_ratio_
    axes.set_xlabel(f"first principal component, {first:.0%} of the variance")
    axes.set_ylabel(f"second, {second:.0%}")
    headline(figure, f"Embeddings of {len(labels):,} test images")
    return figure
