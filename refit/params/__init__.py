"""Every choice a user can make, typed, frozen and strict: the one reader of `params.yaml`.

No key has a default here. `params.yaml` holds the values; this module says which keys there are,
what they mean and what they may be. A file that fails the check never reaches any work.
"""

import difflib
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from refit.runtime.errors import UserError

PARAMS_FILE = Path("params.yaml")
OUR_SYSTEMS = ("classifier", "autoencoder")
OUR_NETWORKS = ("mlp", "cnn", "resnet9", "airbench")
WEIGHTS_FILES = Path("data/weights")
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for 0 and 1
        raise PydanticCustomError("switch", "a number, not true or false")
    return value


# YAML 1.1 reads 1e-3 as text, so numbers may also be numerals in text.
Real = Annotated[float, BeforeValidator(_no_switch), Field(strict=False, allow_inf_nan=False)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Positive = Annotated[Real, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[int, Field(ge=1)] | Annotated[Real, Field(gt=0, le=1)]
"""As Lightning's limits: 1 is one batch, 1.0 is all of them."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class DataParams(Section):
    source: Annotated[str, Field(min_length=1)]
    """Where images come from: digits (bundled), torchvision:NAME, or folder (class folders in data.root)."""
    root: Annotated[str, Field(min_length=1)]
    """Folder that holds the raw images; torchvision sets are found or downloaded here. Must exist."""
    image_size: Literal["auto"] | Annotated[int, Field(ge=4, le=1024)]
    """Side of the square images after prepare, pixels. auto: their own size if they share one, else 128."""
    color: Literal["auto", "grey", "rgb"]
    """Colour mode of the set. auto: grey if every image is grey, else rgb."""
    val: Fraction
    """Share of the training images held out for validation, where the source has no validation split of its own."""
    test: Fraction
    """Share of the training images held out for the test, where the source has no test split of its own."""
    bad_images: Literal["fail", "skip"]
    """An image that cannot be decoded, or has two labels: fail names it; skip leaves it out and counts it."""

    @model_validator(mode="after")
    def _some_left_to_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test:g}; expected less than 1, to leave some to train")
        return self


class AugmentParams(Section):
    shift: Annotated[int, Field(ge=0, le=64)]
    """Largest random shift of a training image along each axis, pixels (zero-padded random crop)."""
    flip: bool
    """Mirror each training image left to right with probability one half."""
    cutout: Annotated[int, Field(ge=0, le=512)]
    """Side of a square set to zero at a random place in each training image, pixels; 0: none."""
    crop_area: Annotated[Real, Field(gt=0, le=1)]
    """Smallest share of a training image's area that a random crop takes, at an aspect ratio of 3:4 to 4:3; the crop
    is resized to the whole image's size (Szegedy et al. 2015). 1: none."""
    color_jitter: Fraction
    """Multiply brightness, contrast and saturation of each training image, in this order, by random factors between
    1 - this and 1 + this, each as torchvision's ColorJitter does; grey images have no saturation. 0: none."""
    policy: Literal["none", "randaugment", "trivialaugment"]
    """Random operations on each training image: randaugment, two of 14 at magnitude 9 of 30 (Cubuk et al. 2020), or
    trivialaugment, one of them at a random magnitude of the wide range (Müller and Hutter 2021)."""
    mixup: Annotated[Real, Field(ge=0, le=100)]
    """Blend each training image, and its label, with another's: alpha of the Beta(alpha, alpha) that the share is
    drawn from (Zhang et al. 2018), such as 0.2. 0: none. With cutmix too, each image draws which of the two."""
    cutmix: Annotated[Real, Field(ge=0, le=100)]
    """Put a random rectangle of another training image over each, and as much of its label: alpha of the
    Beta(alpha, alpha) that the share is drawn from (Yun et al. 2019), such as 1. 0: none."""


class ModelParams(Section):
    system: str
    """What is trained: classifier, autoencoder, or a LightningModule of your own by dotted path (docs/systems.md)."""
    system_arguments: dict[str, Any]
    """Arguments of your own system, by the names in its signature."""
    network: str
    """mlp, cnn, resnet9 or airbench (ours, for small images), torchvision:NAME for any torchvision classifier, or a
    module of your own by dotted path (docs/systems.md)."""
    network_arguments: dict[str, Any]
    """Arguments of your own network, by the names in its signature."""
    weights: Annotated[str, Field(min_length=1)] | None
    """What the network begins with: torchvision's weights of a torchvision network by name, such as DEFAULT; or a
    file below data/weights/, .safetensors, or a state_dict as .pt or .pth: any network's own, or the
    model.safetensors of a model that Refit trained. A last layer that is missing in them or whose number of
    outputs differs begins anew. Only the training stages read them. null: random numbers."""
    embedding: Annotated[int, Field(ge=2, le=4096)]
    """Length of the autoencoder's embeddings."""
    width: Annotated[int, Field(ge=4, le=1024)] | None
    """Channels of our network's first layer (mlp: hidden units); null: the network's own."""
    dropout: Fraction | None
    """Dropout before our network's last layer; null: the network's own."""
    test_time_flip: bool
    """In test and predict, take the mean of the logits of each image and of its mirror image."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if self.system not in OUR_SYSTEMS and "." not in self.system:
            raise ValueError(f"system {self.system!r} is unknown{nearest(self.system, [*OUR_SYSTEMS])}; expected "
                             f"{', '.join(OUR_SYSTEMS)} or a dotted path")  # fmt: skip
        if self.network not in OUR_NETWORKS:
            # The names behind the colon and in a path are checked where torchvision and the path are at hand.
            if not self.network.startswith("torchvision:") and "." not in self.network:
                close = nearest(self.network, [*OUR_NETWORKS])
                raise ValueError(f"network {self.network!r} is unknown{close}; expected "
                                 f"{', '.join(OUR_NETWORKS)}, torchvision:NAME or a dotted path")  # fmt: skip
            if self.width is not None or self.dropout is not None:
                raise ValueError(f"width and dropout have no effect with {self.network}; set both to null")
        if self.weights is not None and not self.network.startswith("torchvision:") and "." not in self.weights:
            raise ValueError(f"weights {self.weights!r} is a name, and {self.network} has no weights by name; expected "
                             f"a file below {WEIGHTS_FILES}/, or null")  # fmt: skip
        if self.weights is not None and "." in self.weights:
            path = Path(self.weights)
            if path.suffix not in WEIGHTS_SUFFIXES:
                raise ValueError(f"weights {self.weights!r} is of a kind that is not read; expected one of "
                                 f"{', '.join(WEIGHTS_SUFFIXES)}")  # fmt: skip
            if ".." in path.parts or not path.is_relative_to(WEIGHTS_FILES):
                raise ValueError(f"weights {self.weights!r} is not below {WEIGHTS_FILES}/, which dvc.yaml watches; "
                                 "put it there")  # fmt: skip
        if self.network_arguments and (self.network in OUR_NETWORKS or self.network.startswith("torchvision:")):
            raise ValueError(f"network_arguments have no effect with {self.network}; set them to {{}}")
        return self


class BatchParams(Section):
    size: Literal["auto"] | Annotated[int, Field(ge=2)]
    """Effective batch, images: what the optimizer sees. auto: as large as max_size with 16 steps an epoch or more."""
    max_size: Annotated[int, Field(ge=2)]
    """Largest effective batch that auto may choose, images."""
    memory_budget: Positive
    """Memory that one training step may take on a CPU, GiB. An accelerator's own memory is its budget."""


class OptimizerParams(Section):
    name: Literal["adamw", "sgd", "muon"]
    """adamw (decoupled weight decay), sgd (Nesterov momentum), or muon (Jordan et al. 2024): orthogonalised momentum
    for the matrices and kernels between the first layer and the last, adamw for all else, at one learning rate."""
    learning_rate: Literal["auto"] | Positive
    """Peak learning rate. auto: the one find_lr suggests."""
    backbone_learning_rate: Positive
    """Times the learning rate is that of the network's layers before its head, in fit; find_lr's test moves all alike.
    Such as 0.1 to fine-tune; 1: the same."""
    fallback_learning_rate: Positive
    """Taken, with a warning, where learning_rate is auto and find_lr has no suggestion."""
    weight_decay: Annotated[Real, Field(ge=0)]
    """Weight decay of matrices and kernels; norms and biases have none."""
    momentum: Fraction
    """SGD's and Muon's Nesterov momentum, or AdamW's first beta."""
    schedule: Literal["one_cycle", "triangular", "cosine", "cosine_warm_up", "plateau", "constant"]
    """Learning rate over the whole fit, stepped at each optimizer step. one_cycle and triangular climb to the peak and
    fall to zero, along cosines and in straight lines; cosine only falls; cosine_warm_up climbs in a straight line and
    falls along a cosine. plateau lowers the rate at the end of an epoch, where val_loss no longer falls."""
    warm_up: Annotated[Real, Field(gt=0, lt=1)]
    """Share of the fit's steps in which one_cycle, triangular and cosine_warm_up climb."""
    plateau_factor: Annotated[Real, Field(gt=0, lt=1)]
    """What plateau multiplies the learning rate by."""
    plateau_patience: Annotated[int, Field(ge=0)]
    """Epochs without a lower val_loss that plateau waits for before it lowers the learning rate."""


class LossParams(Section):
    label_smoothing: Fraction
    """Share of each target spread evenly over all classes (Szegedy et al. 2016)."""
    class_weights: Literal["none", "balanced"] | list[Positive]
    """What an image of each class counts in the classifier's training loss; val_loss is never weighted. balanced:
    images / (classes x images of the class) in the train split, which is 1 in the mean over its images. Or a list,
    a weight a class, in the order of their names."""


class FitParams(Section):
    max_epochs: Count
    """Passes over the training images."""
    monitor: Annotated[str, Field(pattern=r"^val_\w+$")]
    """What chooses the best epoch, whose weights are kept, and what early stopping watches: val_loss, or val_accuracy
    of a classifier, or what else your own system logs as val_NAME. Of a NAME that ends in loss or error the lowest
    is best, else the highest."""
    patience: Count | None
    """Stop after this many epochs without a better monitor; null: never stop early."""
    gradient_clip_val: Positive | None
    """Clip the gradient to this at each step; null: no clipping."""
    gradient_clip_algorithm: Literal["norm", "value"]
    """What is clipped: norm, the global norm of all gradients; value, each gradient's own value, to either side."""
    freeze_epochs: Annotated[int, Field(ge=0)]
    """Epochs in which only the network's head, its last layer with weights, learns (and what a system has beside its
    network), and batch norm before it keeps its statistics; 0: none. See model.weights."""
    averaging: Literal["none", "swa", "ema"]
    """What is validated and kept. none: the weights. ema: their exponential moving average over the steps, and that
    of batch norm's statistics. swa: the mean of the weights at the ends of the epochs from swa_start on, batch norm's
    statistics computed anew for it (Izmailov et al. 2018); the best epoch is one of those. A constant schedule gives
    it weights that differ."""
    ema_decay: Annotated[Real, Field(gt=0, lt=1)]
    """ema: the share of the average that each step leaves, such as 0.99; less in the first steps."""
    swa_start: Fraction
    """swa: the share of max_epochs that goes by before the weights are averaged."""
    save_state_every: Positive
    """Seconds between two saved states, from which a killed fit goes on; also once an epoch, where that costs less
    than 2 % of the time. It changes no result."""

    @model_validator(mode="after")
    def _there_is_a_value_to_clip_to(self) -> Self:
        if self.gradient_clip_algorithm == "value" and self.gradient_clip_val is None:
            raise ValueError(
                "gradient_clip_algorithm = 'value' has no effect while gradient_clip_val is null; set that, or norm"
            )
        return self

    @model_validator(mode="after")
    def _averaging_is_reached(self) -> Self:
        if self.averaging == "swa" and self.patience is not None:
            raise ValueError(f"patience = {self.patience} could end the fit before averaging = 'swa' begins; set "
                             "patience to null")  # fmt: skip
        if self.averaging == "swa" and self.freeze_epochs > self.first_averaged_epoch:
            raise ValueError(f"freeze_epochs = {self.freeze_epochs}, but averaging = 'swa' begins after "
                             f"{self.first_averaged_epoch} epochs, and would compute frozen statistics anew; "
                             "raise swa_start")  # fmt: skip
        return self

    @property
    def first_averaged_epoch(self) -> int:
        """By swa; from 0."""
        return int(self.swa_start * self.max_epochs)

    @property
    def monitor_mode(self) -> Literal["min", "max"]:
        return "min" if self.monitor.endswith(("loss", "error")) else "max"


class TrainerParams(Section):
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"]
    """Lightning's accelerator."""
    devices: Count
    """Devices of each machine that fit trains on, with a process for each (docs/distributed.md); the effective batch
    is shared among them. All other stages take one."""
    num_nodes: Count
    """Machines that fit trains on, as torchrun or SLURM starts it on each."""
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]
    """Lightning's strategy for more than one device. auto: ddp."""
    sync_batchnorm: bool
    """Batch norm over the images of all devices, not of each by itself; on CUDA devices alone."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
    """Lightning's precision. auto: bf16-mixed where the device does it natively, else 32-true."""
    threads: Count
    """PyTorch's CPU threads. A tracked choice: another number gives other last bits. More than one is for large
    networks on an otherwise idle machine: two such trainings side by side wait for each other at every step."""
    deterministic: bool
    """Use deterministic algorithms only."""
    compile: Literal["default", "reduce-overhead"] | None
    """torch.compile's mode for the network in fit; reduce-overhead records CUDA graphs, for small networks. It takes
    half a minute to more than one before the first step, and a C++ compiler. null: not compiled."""

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def _several_devices_can_work_together(self) -> Self:
        if self.world_size == 1 and self.strategy != "auto":
            raise ValueError(f"strategy {self.strategy} has no effect with one device; set it to auto, or raise "
                             "devices")  # fmt: skip
        if self.world_size == 1 and self.sync_batchnorm:
            raise ValueError("sync_batchnorm has no effect with one device; set it to false, or raise devices")
        if self.accelerator == "cpu" and self.sync_batchnorm:
            raise ValueError("sync_batchnorm: true is for CUDA devices, and accelerator is cpu; set it to false")
        if self.accelerator == "cpu" and self.strategy == "fsdp":
            raise ValueError("strategy fsdp is for CUDA devices, and accelerator is cpu; set it to ddp")
        return self


class TestParams(Section):
    __test__ = False  # not a test, whatever its name says to pytest
    confidence: Annotated[Real, Field(gt=0.5, lt=1)]
    """Confidence level of the accuracy's Wilson score interval."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)]
    """Equal-width confidence bins of the reliability diagram and of ECE."""
    worst_mistakes: Annotated[int, Field(ge=0, le=100)]
    """How many of the most confident mistakes the gallery shows."""


class PredictParams(Section):
    images: Annotated[str, Field(min_length=1)]
    """Folder of new images, searched in full; where it holds none, the test split is predicted."""
    top_k: Count
    """How many of the most probable classes each row lists."""
    abstain_below: Fraction
    """A prediction whose probability is lower is marked as abstained."""


class PromoteParams(Section):
    min_accuracy: Fraction
    """Test accuracy below which a model never becomes the champion, not even the first."""
    margin: Fraction
    """How much lower than the champion's the accuracy of a new champion may be, at worst: the lower end of the
    difference's interval (test.confidence), on test images that neither was trained on."""


class DebugParams(Section):
    fast_dev_run: Annotated[int, Field(ge=0)]
    """fit, test and predict run this many batches of each split, once, to see that nothing breaks; 0: all of them."""
    overfit_batches: Annotated[int, Field(ge=0)]
    """fit trains and validates on the images of this many batches alone, as they are; 0: on all."""
    limit_train_batches: Share
    """How much of the training images an epoch takes: a share such as 0.1, or a number of micro-batches; 1.0: all."""
    limit_val_batches: Share
    """How much of the validation images is looked at: a share, or a number of batches; 1.0: all."""
    limit_test_batches: Share
    """How much test and predict look at: a share, or a number of batches; 1.0: all."""
    val_check_interval: Share
    """How often fit validates: after this share of an epoch, or after so many micro-batches; 1.0: after each epoch.
    The last validation must be at the epoch's end: its weights are those that are kept."""
    profiler: Literal["simple", "advanced", "pytorch"] | None
    """Lightning's profiler of fit: its report is shown, and kept in data/logs/profile/. null: none."""
    detect_anomaly: bool
    """Name the operation whose gradient is not a number, where there is one; several times slower."""

    @property
    def test_batches(self) -> int | float:
        """What test and predict take, as Lightning's limits."""
        return self.fast_dev_run or self.limit_test_batches

    @property
    def shortens(self) -> bool:
        """Whether what comes out is to be taken for a trial and not for a model."""
        limits = (self.limit_train_batches, self.limit_val_batches, self.limit_test_batches)
        return bool(self.fast_dev_run or self.overfit_batches) or any(not _is_all(limit) for limit in limits)


class TrackingParams(Section):
    loggers: list[Literal["mlflow", "tensorboard", "csv", "wandb"]]
    """Where curves, pictures and parameters of a fit and a test go: MLflow, and below data/logs TensorBoard, CSV files
    and W&B (an extra: uv pip install 'wandb>=0.25'). It changes no result, and so makes no stage stale."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if twice := sorted({name for name in self.loggers if self.loggers.count(name) > 1}):
            raise ValueError(f"loggers names {', '.join(twice)} twice; expected each once")
        return self


class PipelinesParams(Section):
    stage_time_limit: Positive
    """Time limit of each stage, and each other step, in a Prefect flow, minutes. Past it its processes are ended."""
    stage_retries: Annotated[int, Field(ge=0, le=10)]
    """How often a Prefect flow runs a stage or step again after it failed (never after a user's error, exit code 2)."""
    publish: Literal["none", "commit", "push"]
    """What a retraining flow does with a new champion: nothing; git commit of dvc.lock and *.dvc; that, dvc push and
    git push."""


class Params(Section):
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    """Seed of every random choice: splits, initial weights, batch order, augmentation, dropout."""
    data: DataParams
    augment: AugmentParams
    model: ModelParams
    batch: BatchParams
    optimizer: OptimizerParams
    loss: LossParams
    fit: FitParams
    trainer: TrainerParams
    test: TestParams
    predict: PredictParams
    promote: PromoteParams
    debug: DebugParams
    tracking: TrackingParams
    pipelines: PipelinesParams

    @model_validator(mode="after")
    def _devices_share_the_batch(self) -> Self:
        size, devices = self.batch.size, self.trainer.world_size
        if size == "auto" and devices.bit_count() != 1:
            raise ValueError(f"batch.size auto is a power of two, which trainer.devices x num_nodes = {devices} "
                             f"cannot share evenly; set it to a multiple of {devices}")  # fmt: skip
        if devices > 1 and self.fit.freeze_epochs:  # DDP sums the gradients of what is to be trained when it begins
            raise ValueError(f"fit.freeze_epochs = {self.fit.freeze_epochs} does not work with several devices; set it "
                             "to 0, or trainer.devices and num_nodes to 1")  # fmt: skip
        if devices > 1 and self.debug.overfit_batches:
            raise ValueError("debug.overfit_batches does not work with several devices; set it to 0, or "
                             "trainer.devices and num_nodes to 1")  # fmt: skip
        if self.trainer.strategy == "fsdp":
            self._works_with_shards()
        if size != "auto" and size % devices:
            raise ValueError(f"batch.size = {size} cannot be shared evenly by trainer.devices x num_nodes = {devices}; "
                             f"set it to a multiple of {devices}")  # fmt: skip
        return self

    def _works_with_shards(self) -> None:
        if self.optimizer.name == "muon":  # whose step is of whole matrices
            raise ValueError("optimizer.name = muon does not work with trainer.strategy fsdp; set it to adamw or sgd")
        for key, value, only in (
            ("fit.gradient_clip_val", self.fit.gradient_clip_val, None),  # Lightning's word
            ("fit.averaging", self.fit.averaging, "none"),
            ("optimizer.weight_decay", self.optimizer.weight_decay, 0),  # a shard does not tell a matrix from a norm
            ("model.system", self.model.system, "classifier"),  # others may need the whole network at the fit's end
            ("trainer.compile", self.trainer.compile, None),
        ):
            if value != only:
                expected = "null" if only is None else only
                raise ValueError(f"{key} = {value} does not work with trainer.strategy fsdp; set it to {expected}")

    @model_validator(mode="after")
    def _random_weights_learn(self) -> Self:
        if self.model.weights is None and self.fit.freeze_epochs >= self.fit.max_epochs:
            raise ValueError(f"fit.freeze_epochs = {self.fit.freeze_epochs} of {self.fit.max_epochs} epochs leaves all "
                             "layers but the last as random as they begin; lower it, or set model.weights")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _what_is_monitored_is_logged(self) -> Self:
        logged = {"classifier": ["val_loss", "val_accuracy"], "autoencoder": ["val_loss"]}.get(self.model.system)
        if logged and self.fit.monitor not in logged:
            raise ValueError(f"fit.monitor = {self.fit.monitor!r} is not what model.system = {self.model.system!r} logs"
                             f"{nearest(self.fit.monitor, logged)}; expected one of {', '.join(logged)}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _labels_are_of_use(self) -> Self:
        if self.model.system == "autoencoder":
            off: dict[str, tuple[Any, Any]] = {
                "augment.mixup": (self.augment.mixup, 0),
                "augment.cutmix": (self.augment.cutmix, 0),
                "loss.class_weights": (self.loss.class_weights, "none"),
            }
            for key, (value, none) in off.items():
                if value != none:
                    raise ValueError(
                        f"{key} = {value!r} has no use in model.system = 'autoencoder', which trains without labels; "
                        f"set it to {none}"
                    )
        return self

    def only(self, *sections: str) -> "Params":
        """The same parameters with these sections alone; reading another raises AttributeError."""
        return Params.model_construct(None, **{name: getattr(self, name) for name in sections})


def _is_all(limit: int | float) -> bool:
    return isinstance(limit, float) and limit == 1


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check the whole of a parameter file.

    Raises UserError with a line for each fault: the file, the dotted key, what was expected.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506, a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run from the repository's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{path} is not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep to be read; expected sections of keys and values") from None
    return check_params(values, str(path))


def check_params(values: Any, where: str = str(PARAMS_FILE)) -> Params:
    """Check parsed parameters. Raises UserError with a line for each fault, led by `where`."""
    if not isinstance(values, dict):
        found = "nothing" if values is None else repr(values)
        raise UserError(f"{where}: expected sections of keys and values, found {textwrap.shorten(found, 60)}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {line}" for line in _explain(error))) from None


def _explain(error: ValidationError) -> list[str]:
    """One line a faulty key; the branches of a union (`auto` or a number) count as one fault, whose first is told of
    the whole value."""
    faults: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    meant: set[str] = set()
    for fault in error.errors():
        section, keys = _resolve(fault["loc"])
        path = ".".join(keys)
        if fault["type"] == "extra_forbidden":
            suggestion = nearest(keys[-1], list(section.model_fields), path.removesuffix(keys[-1]))
            line = f"{path} is not a known key{suggestion}"
            meant.add(suggestion.removeprefix("; did you mean ").removesuffix("?"))
        elif fault["type"] == "missing":
            line = f"{path} is missing; {_expected(section, keys[-1])}"
        elif fault["type"] == "value_error":
            line = f"{path}: {fault['ctx']['error']}" if path else str(fault["ctx"]["error"])
        else:
            line = lines.setdefault(path, f"{path} = {fault['input']!r}: {_expected(section, keys[-1])}")
            rules = faults.setdefault(line, [])
            if fault["type"] not in ("model_type", "string_pattern_mismatch"):  # of which the description says it
                rules.append(fault["msg"].removeprefix("Input should be "))
            continue
        faults[line] = []
    return [
        line + (f" It must be {' or '.join(dict.fromkeys(rules))}." if rules else "")
        for line, rules in faults.items()
        if line.partition(" is missing; ")[0] not in meant  # it is there, misspelt
    ]


def _resolve(loc: tuple[int | str, ...]) -> tuple[type[Section], list[str]]:
    """The section that owns the faulty key, and the key's path without pydantic's union branches."""
    section: type[Section] = Params
    keys: list[str] = []
    for part in loc:
        keys.append(str(part))
        field = section.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        if len(keys) < len(loc):
            section = field.annotation
    return section, keys


def _expected(section: type[Section], key: str) -> str:
    field = section.model_fields.get(key)
    return (
        f"expected: {' '.join(field.description.split())}"
        if field and field.description
        else "expected a section of keys."
    )


def nearest(name: str, known: list[str], lead: str = "") -> str:
    """What an error says after an unknown name: the most similar known one, led by `lead`; nothing where none is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {lead}{close[0]}?" if close else ""


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a later key replace an earlier one without a word, and a few aliases stand for more values than any
    memory holds; here both are errors."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"*{alias.anchor} stands for a value elsewhere; write the value here", alias.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)
