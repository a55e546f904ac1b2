"""The rival of the fine-tuning recipe: a plain script with timm and PyTorch, as a good engineer writes it in an hour.

python -m benchmarks.plain_finetune FOLDER WEIGHTS [--seed 0] [--epochs 5]. FOLDER has train, validation and test, each
with one folder per class. Prints the test accuracy as its last line.
"""

import argparse
import os
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

TRAIN_SIZE, TEST_SIZE, BATCH, RATE, HEAD_RATE = 192, 224, 64, 4e-4, 4e-3


def main(folder: str, weights: str, seed: int, epochs: int) -> None:
    torch.manual_seed(seed)
    train = ImageFolder(f"{folder}/train", create_transform(TRAIN_SIZE, is_training=True, scale=(0.35, 1),
                                                            auto_augment=None, color_jitter=0.0))  # fmt: skip
    whole = create_transform(TEST_SIZE, crop_pct=1.0, interpolation="bicubic")
    val, test = ImageFolder(f"{folder}/validation", whole), ImageFolder(f"{folder}/test", whole)
    workers = os.cpu_count() or 1
    loader = DataLoader(train, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=len(train.classes))
    network.load_state_dict(state, strict=False)
    head = network.get_classifier()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    network.to(memory_format=torch.channels_last)
    of_head = {id(weight) for weight in head.parameters()}
    body = [weight for weight in network.parameters() if id(weight) not in of_head]
    optimizer = torch.optim.AdamW([{"params": body}, {"params": head.parameters()}], lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [RATE, HEAD_RATE], total_steps=epochs * len(loader))
    best, kept = 0.0, {}
    for epoch in range(epochs):
        network.train()
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        right = accuracy(network, val, workers)
        print(f"epoch {epoch + 1}: validation accuracy {right:.4f}", flush=True)
        if right >= best:
            best, kept = right, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    print(f"{accuracy(network, test, workers):.4f}")


@torch.inference_mode()
def accuracy(network: torch.nn.Module, images: ImageFolder, workers: int) -> float:
    network.eval()
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in DataLoader(images, BATCH, num_workers=workers))
    return right / len(images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
