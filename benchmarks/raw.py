"""The first baseline: a plain PyTorch loop, which imports only what Refit's networks need."""

import time

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from refit.artifacts.prepared import Split
from refit.params import ModelParams
from refit.systems.networks import Normalize, build_network, network_arguments


def made_split(images: int, shape: tuple[int, int, int], classes: int = 10) -> Split:
    """Random images: the speed does not depend on their content."""
    random = np.random.default_rng(0)
    return Split(random.integers(0, 256, (images, *shape), np.uint8), random.integers(0, classes, images))


def our_network(name: str, width: int | None, shape: tuple[int, int, int]) -> nn.Module:
    """One of Refit's networks, by its name and width in params.yaml, for ten classes."""
    arguments = network_arguments(ModelParams(network=name, width=width))
    return build_network(name, arguments, shape, 10, [0.5], [0.25])


def without_normalize(network: nn.Module) -> nn.Module:
    """One of Refit's networks without its first layer, for images that are already normalised."""
    first, *others = network.children()
    assert isinstance(first, Normalize)
    return nn.Sequential(*others)


def raw_loop(network: nn.Module, train: Split, val: Split, batch_size: int, epochs: int, augmented: bool = False,
             compile_mode: str | None = None) -> float:  # fmt: skip
    """Training images per second of a plain PyTorch loop that does the same work: batches gathered from one tensor,
    AdamW without weight decay for biases, one cycle, clipped gradients, loss, accuracy, and a validation per epoch."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True  # as in any loop that is written for speed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).to(memory_format=torch.channels_last)
    if compile_mode:
        network.compile(mode=compile_mode)
    images, labels = torch.from_numpy(train.images).to(device), torch.from_numpy(train.labels).to(device)
    val_images, val_labels = torch.from_numpy(val.images).to(device), torch.from_numpy(val.labels).to(device)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-3, fused=True
    )
    steps = len(labels) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * steps, cycle_momentum=False)
    began = time.perf_counter()
    for _ in range(epochs):
        network.train()
        sums = torch.zeros(2, device=device)
        for indices in torch.randperm(len(labels), device=device)[: steps * batch_size].split(batch_size):  # type: ignore[no-untyped-call]
            batch_images, batch_labels = images[indices], labels[indices]
            if augmented:
                batch_images = crop_and_flip(batch_images)
            with _autocast(device):
                logits = network(batch_images)
                loss = F.cross_entropy(logits, batch_labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                sums += torch.stack((loss * len(indices), (logits.argmax(dim=1) == batch_labels).sum()))
        network.eval()
        val_sums = torch.zeros(2, device=device)
        with torch.inference_mode(), _autocast(device):
            for some, truth in zip(val_images.split(2 * batch_size), val_labels.split(2 * batch_size), strict=True):  # type: ignore[no-untyped-call]
                logits = network(some)
                loss = F.cross_entropy(logits, truth, reduction="sum")
                val_sums += torch.stack((loss, (logits.argmax(dim=1) == truth).sum()))
        [float(value) for value in (*sums, *val_sums)]  # a real loop would read its metrics after each epoch
    return epochs * steps * batch_size / (time.perf_counter() - began)


def crop_and_flip(images: Tensor, padding: int = 2) -> Tensor:
    """A random crop and flip for each image, (N, C, H, W), computed for the whole batch at once."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    columns = torch.where(torch.rand(count, 1, device=images.device) < 0.5, columns.flip(1), columns)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    pixels = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(count, channels, height, width)


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
