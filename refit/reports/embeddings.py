"""Pictures of an encoder's embeddings and of the images reconstructed from them."""

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

MAX_LEGEND_CLASSES = 20
SHOWN = 8  # reconstructed images


def embedding_pictures(
    system: pl.LightningModule, outputs: Mapping[str, Tensor], split: Split, classes: Sequence[str]
) -> dict[str, bytes]:
    """PNG files by name: a map of the output `embedding`, (N, D), if its values span a plane; and reconstructions of
    some images of `split`, if the system has `reconstruct`, which maps uint8 images (N, C, H, W) to uint8 images."""
    pictures = {}
    if "embedding" in outputs and _span_a_plane(outputs["embedding"]):
        labels = [classes[label] for label in split.labels]
        pictures["embedding_map"] = embedding_map(outputs["embedding"].numpy(), labels)
    if reconstruct := getattr(system.eval(), "reconstruct", None):
        some = split.images[:: max(1, len(split.images) // SHOWN)][:SHOWN]
        with torch.no_grad():
            reconstructed = reconstruct(torch.from_numpy(some).to(system.device))
        pictures["reconstructions"] = reconstructions(some, reconstructed.cpu().numpy())
    return pictures


def _span_a_plane(embeddings: Tensor) -> bool:
    images, dimensions = embeddings.shape
    return images > 2 and dimensions > 1 and not bool((embeddings == embeddings[0]).all())


@as_png
def reconstructions(images: NDArray[np.uint8], reconstructed: NDArray[np.uint8]) -> Figure:
    """Images, (N, C, H, W), above their reconstructions."""
    tile = WIDTH / len(images)
    figure = Figure(figsize=(WIDTH, 2 * tile + 0.6))
    enlarged = max(images.shape[2:]) <= tile * DPI
    for row, pixels in zip(figure.subplots(2, len(images), squeeze=False), (images, reconstructed), strict=True):
        for axes, image in zip(row, pixels, strict=True):
            axes.set_axis_off()
            shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if enlarged else "auto")
    headline(figure, "Test images (top) and their reconstructions (bottom)")
    return figure


@as_png
def embedding_map(embeddings: NDArray[np.float32], labels: Sequence[str]) -> Figure:
    """Embeddings, (N, D), projected on their first two principal components; `labels` are the images' class names."""
    pca = PCA(2, svd_solver="full").fit(embeddings)
    points = pca.transform(embeddings)
    names = sorted(set(labels))
    figure = Figure(figsize=(WIDTH, 0.75 * WIDTH))
    axes = figure.subplots()
    class_names = np.array(labels)
    for number, name in enumerate(names):
        of_class = points[class_names == name]
        colour = colormaps["tab20" if len(names) > 10 else "tab10"](number % 20)
        axes.scatter(of_class[:, 0], of_class[:, 1], s=7, alpha=0.7, linewidths=0, color=colour, label=name)
    if len(names) <= MAX_LEGEND_CLASSES:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    first, second = pca.explained_variance_ratio_
    axes.set_xlabel(f"first principal component, {first:.0%} of the variance")
    axes.set_ylabel(f"second principal component, {second:.0%} of the variance")
    headline(figure, f"Embeddings of {len(labels):,} test images")
    return figure
