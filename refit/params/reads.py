"""The values of params.yaml that each stage is given. No other value can change what the stage writes."""

from refit.params.model import ModelParams
from refit.params.training import FitParams

_DEVICE = ("trainer.accelerator", "trainer.threads", "trainer.deterministic")

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("seed", "data"),
    # The initial weights and the order of the images do not change how much memory a step takes.
    "scale_batch": (
        "augment.train_size", "model", "batch", "fit.train", "fit.freeze_share", *_DEVICE, "trainer.precision",
    ),
    # The range test sets the learning rate at each step, so there is no schedule.
    "find_lr": (
        "seed", "augment", "model", "loss",
        "optimizer.name", "optimizer.learning_rate", "optimizer.fallback_learning_rate", "optimizer.weight_decay",
        "optimizer.momentum", "optimizer.backbone_learning_rate", "optimizer.layer_decay", "fit.freeze_epochs",
        "fit.freeze_share", "fit.train", *_DEVICE, "trainer.precision",
    ),
    "features": (
        "seed", *(f"model.{name}" for name in ModelParams.model_fields if name != "test_time_flip"), "fit.train",
        "debug", *_DEVICE,
    ),
    "fit": (
        "seed", "augment", "model", "optimizer", "loss",
        *(f"fit.{name}" for name in FitParams.model_fields if name != "save_state_every"), "trainer", "debug",
    ),
    "test": ("test", "debug", *_DEVICE),
    "predict": ("predict", "debug", *_DEVICE),
}  # fmt: skip
"""By stage: sections, or keys of them by dotted name."""

RESOLVED = {"data.image_size": "auto"}
"""Keys whose value depends on others if it is this one: `check` then records the value that the stages are given. So a
stage reads none of those others, and runs again only if the value changes."""
