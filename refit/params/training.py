"""Sections `batch`, `optimizer`, `loss` and `fit`: how the model is trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from refit.params.types import NOT_BOOL, Count, Fraction, Positive, Section, real
from refit.runtime.errors import UserError


class BatchParams(Section):
    size: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """Effective batch size, in images: how many images the optimizer sees per step. auto: the largest power of two up
    to batch.max_size that leaves at least 16 steps an epoch."""
    max_size: Annotated[int, Field(ge=2)] = 256
    """Largest effective batch size that auto may choose, in images."""
    memory_budget: Positive = 2.0
    """Memory that one training step may take on a CPU, in GiB. On an accelerator its own memory is the limit."""


class OptimizerParams(Section):
    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """adamw: decoupled weight decay. sgd: Nesterov momentum. muon: orthogonalised momentum (Jordan et al. 2024) for the
    matrices and kernels between the first and the last layer, and adamw for all others, at the same learning rate."""
    learning_rate: Literal["auto"] | Positive = "auto"
    """Peak learning rate. auto: the rate that find_lr suggests."""
    backbone_learning_rate: Positive = 1.0
    """Factor on the learning rate of all layers before the network's head, such as 0.1 for fine-tuning. 1: the same
    rate. find_lr's range test applies it too."""
    layer_decay: Annotated[float, real(gt=0, le=1), NOT_BOOL] = 1.0
    """Layer-wise learning-rate decay of a network of timm: each group of layers has this fraction of the learning rate
    of the group after it, the head the whole (Bao et al. 2021), such as 0.75. 1: the same rate."""
    fallback_learning_rate: Positive = 0.001
    """Learning rate if learning_rate is auto and find_lr has no suggestion; a warning then says so."""
    weight_decay: Annotated[float, real(ge=0), NOT_BOOL] = 0.05
    """Weight decay of matrices and kernels. Norms and biases have none, nor what a network of timm excludes, such as
    embeddings of positions."""
    momentum: Fraction = 0.9
    """Nesterov momentum of sgd and muon, or the first beta of adamw."""
    schedule: Literal["one_cycle", "triangular", "cosine", "cosine_warm_up", "plateau", "constant"] = "one_cycle"
    """Learning rate over the fit, without its frozen epochs. one_cycle: rises to the peak and falls to zero, both along
    a cosine. triangular: the same in straight lines. cosine: only falls. cosine_warm_up: rises in a straight line,
    falls along a cosine. plateau: falls after epochs in which val_loss did not improve. All but plateau change at each
    step."""
    warm_up: Annotated[float, real(gt=0, lt=1), NOT_BOOL] = 0.3
    """Fraction of the fit's steps in which the learning rate of one_cycle, triangular and cosine_warm_up rises."""
    plateau_factor: Annotated[float, real(gt=0, lt=1), NOT_BOOL] = 0.1
    """Factor by which plateau lowers the learning rate."""
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    """plateau lowers the learning rate when val_loss has not improved for more than this many epochs."""


class LossParams(Section):
    label_smoothing: Fraction = 0.0
    """Fraction of each target that is spread evenly over all classes (Szegedy et al. 2016)."""
    class_weights: Literal["none", "balanced"] | list[Positive] = "none"
    """Weight of each class in the classifier's training loss; val_loss is never weighted. balanced: images / (classes x
    images of the class) in the train split, which averages to 1 over its images. Or a list with one weight per class,
    in the order of the class names."""

    def check_class_weights(self, classes: int) -> None:
        """Raises UserError if class_weights is a list with another number of weights than `classes`."""
        if isinstance(self.class_weights, list) and len(self.class_weights) != classes:
            raise UserError(
                f"loss.class_weights has {len(self.class_weights)} weights for {classes} classes; expected one per "
                "class, in the order of their names"
            )


FINE_TUNING = (
    "fit.train=all", "fit.l2=auto", "fit.freeze_share=0.3", "fit.max_epochs=5", "batch.max_size=64",
    "optimizer.learning_rate=0.004", "optimizer.backbone_learning_rate=0.1",
)  # fmt: skip
"""Settings to train the later layers too, after the head was trained alone: of docs/recipes/photos-finetune.yaml those
that do not depend on the images."""


class FitParams(Section):
    train: Literal["all", "head"] = "all"
    """Which layers learn. all: all of them, after fit.freeze_epochs. head: only the network's last layer, on the
    outputs of the pretrained layers before it (a linear probe; it needs model.weights). The stage `features` computes
    those once, without augmentation. The layer is then a logistic regression, which takes seconds and needs no learning
    rate, epochs or batches, so most keys of optimizer, batch and fit have no effect."""
    l2: Literal["auto"] | Positive = "auto"
    """With train: head, the strength of the L2 penalty on the layer's weights: l2 / 2 x the sum of their squares is
    added to the mean loss. auto: the best by fit.monitor of up to eleven strengths, from 10 down to 0.0001."""
    max_epochs: Count = 30
    """Number of passes over the training images."""
    monitor: Annotated[str, Field(pattern=r"^val_\w+$")] = "val_loss"
    """The metric that selects the best epoch, whose weights are kept, and that early stopping watches: val_loss,
    val_accuracy (classifier), or any val_NAME that your own system logs. Lower is better if the name ends in loss or
    error, else higher is better."""
    patience: Count | None = None
    """Stop after this many epochs without a better monitor. null: never stop early."""
    gradient_clip_val: Positive | None = 1.0
    """Limit to which the gradient is clipped at each step. null: no clipping."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """norm: scale all gradients so that their global norm is at most gradient_clip_val. value: clip each element of the
    gradient to [-gradient_clip_val, gradient_clip_val]."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """Number of first epochs in which only the head learns: the network's last layer with weights, and the layers of a
    system outside its network. Batch norm before it keeps its statistics. These epochs have a constant learning rate,
    which find_lr chooses by a range test of its own. 0: off. See model.weights."""
    freeze_share: Annotated[float, real(ge=0, lt=1), NOT_BOOL] = 0.0
    """Share of the layers before the head that never learn, counted from the input. What pretrained layers near the
    input respond to, such as edges and textures, fits most photos, and they cost the most time: a step without their
    gradients is shorter. Their batch norm keeps its statistics. 0: all layers learn."""
    averaging: Literal["none", "swa", "ema"] = "none"
    """Which weights are validated and kept. none: the trained weights. ema: their exponential moving average over the
    steps, batch norm's statistics included. swa: their mean over the ends of the epochs from swa_start on, with batch
    norm's statistics recomputed (Izmailov et al. 2018); the best epoch is one of those. swa needs a schedule that does
    not fall to zero, such as constant, to have weights that differ."""
    ema_decay: Annotated[float, real(gt=0, lt=1), NOT_BOOL] = 0.99
    """Decay of ema: the fraction of the average that each step keeps. It is lower in the first steps."""
    swa_start: Fraction = 0.75
    """Fraction of max_epochs after which swa begins to average."""
    save_state_every: Positive = 30.0
    """Seconds between two saved states, from which a killed fit resumes. A state is also saved after each epoch if that
    takes less than 2 % of the time. Changes no result."""

    @model_validator(mode="after")
    def _averaging_is_reached(self) -> Self:
        if self.averaging == "swa" and self.patience is not None:
            raise ValueError(f"patience = {self.patience} could end the fit before averaging = 'swa' begins; set "
                             "patience to null")  # fmt: skip
        if self.averaging == "swa" and self.freeze_epochs > self.first_averaged_epoch:
            raise ValueError(f"freeze_epochs = {self.freeze_epochs}, but averaging = 'swa' begins after "
                             f"{self.first_averaged_epoch} epochs and would recompute the frozen statistics; "
                             "raise swa_start")  # fmt: skip
        if self.averaging == "swa" and self.freeze_share:
            raise ValueError(f"freeze_share = {self.freeze_share:g}, but averaging = 'swa' would recompute the "
                             "statistics of the frozen layers; set freeze_share to 0")  # fmt: skip
        return self

    @property
    def first_averaged_epoch(self) -> int:
        """First epoch whose weights swa averages, counted from 0."""
        return int(self.swa_start * self.max_epochs)

    @property
    def monitor_mode(self) -> Literal["min", "max"]:
        return "min" if self.monitor.endswith(("loss", "error")) else "max"
