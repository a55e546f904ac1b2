"""Rules across sections: values that are right by themselves, but not together."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from refit.params.data import AugmentParams
from refit.params.dotted import as_in_yaml
from refit.params.model import OUR_NETWORKS, OUR_SYSTEMS, TIMM
from refit.params.params import Params
from refit.params.spelling import nearest


def broken_rules(params: Params) -> Iterator[str]:
    """One message for each broken rule; it names the keys and how to fix them."""
    for rule in (_no_effect, _train_size, _devices, _fsdp, _freezing, _head_alone, _monitor):
        yield from rule(params)


class Choice(NamedTuple):
    """`key` has no effect while `useless` is true of the value of `other`; with `remedy` as that value it has."""

    key: str
    other: str
    useless: Callable[[Any], bool]
    remedy: str


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _is_not_ours(network: str) -> bool:
    return network not in OUR_NETWORKS


def _is_not_timm_s(network: str) -> bool:
    return not network.startswith(TIMM)


# Left out, because one params.yaml serves several data sets, machines and sweeps: data.root, resize, bad_images, val
# and test (a source may not need them), batch.max_size and optimizer.fallback_learning_rate (without auto),
# batch.memory_budget (with an accelerator), debug (fast_dev_run overrides the rest), and with fit.train = head the keys
# of optimizer, batch and fit, so that a probe and a fine-tuning differ in few keys.
CHOICES = (
    Choice("augment.mixup", "model.system", _one_of("autoencoder"), "classifier"),
    Choice("augment.cutmix", "model.system", _one_of("autoencoder"), "classifier"),
    Choice("loss.label_smoothing", "model.system", _one_of("autoencoder"), "classifier"),
    Choice("loss.class_weights", "model.system", _one_of("autoencoder"), "classifier"),
    Choice("model.test_time_flip", "model.system", _one_of("autoencoder"), "classifier"),
    Choice("model.embedding", "model.system", _one_of("classifier"), "autoencoder"),
    Choice("model.system_arguments", "model.system", _one_of(*OUR_SYSTEMS), "your own system"),
    Choice(
        "model.network_arguments", "model.network", _one_of(*OUR_NETWORKS),
        "one of torchvision's or timm's, or your own network",
    ),
    Choice("model.width", "model.network", _is_not_ours, f"one of {', '.join(OUR_NETWORKS)}"),
    Choice("model.dropout", "model.network", _is_not_ours, f"one of {', '.join(OUR_NETWORKS)}"),
    Choice("optimizer.layer_decay", "model.network", _is_not_timm_s, f"a network of timm, {TIMM}NAME"),
    Choice(
        "optimizer.warm_up", "optimizer.schedule", _one_of("cosine", "plateau", "constant"),
        "one_cycle, triangular or cosine_warm_up",
    ),
    Choice("optimizer.plateau_factor", "optimizer.schedule", lambda schedule: schedule != "plateau", "plateau"),
    Choice("optimizer.plateau_patience", "optimizer.schedule", lambda schedule: schedule != "plateau", "plateau"),
    Choice("fit.gradient_clip_algorithm", "fit.gradient_clip_val", _one_of(None), "a number"),
    Choice("fit.ema_decay", "fit.averaging", lambda averaging: averaging != "ema", "ema"),
    Choice("fit.swa_start", "fit.averaging", lambda averaging: averaging != "swa", "swa"),
    Choice("fit.l2", "fit.train", _one_of("all"), "head"),
    *(
        Choice(key, "fit.train", _one_of("head"), "all")
        for key in (
            *(f"augment.{name}" for name in AugmentParams.model_fields),
            "fit.averaging",
            "fit.freeze_share",
            "trainer.compile",
        )
    ),
)  # fmt: skip
_DEFAULTS = Params()


def _no_effect(params: Params) -> Iterator[str]:
    for key, other, useless, remedy in CHOICES:
        value, default, chosen = attrgetter(key)(params), attrgetter(key)(_DEFAULTS), attrgetter(other)(params)
        if value != default and useless(chosen):
            yield (
                f"{key} = {as_in_yaml(value)} has no effect while {other} is {as_in_yaml(chosen)}; set it to its "
                f"default, {as_in_yaml(default)}, or {other} to {remedy}"
            )


def _train_size(params: Params) -> Iterator[str]:
    train, full = params.augment.train_size, params.data.image_size
    if train is None:
        return
    if full != "auto" and train > full:
        yield f"augment.train_size = {train} is larger than data.image_size = {full}; lower it, or set it to null"
    for key, value, part in (
        ("model.network", "mlp", "input"),
        ("model.system", "autoencoder", "output"),  # of its decoder
    ):
        if attrgetter(key)(params) == value:
            yield (
                f"augment.train_size = {train} does not work with {key} = {value}, whose {part} has one fixed size; "
                "set it to null"
            )


def _devices(params: Params) -> Iterator[str]:
    size, devices = params.batch.size, params.trainer.world_size
    if size == "auto" and devices.bit_count() != 1:
        yield (
            f"batch.size = auto is a power of two, which trainer.devices x num_nodes = {devices} cannot share evenly; "
            f"set it to a multiple of {devices}"
        )
    if size != "auto" and size % devices:
        yield (
            f"batch.size = {size} cannot be shared evenly by trainer.devices x num_nodes = {devices}; set it to a "
            f"multiple of {devices}"
        )
    if devices == 1:
        return
    if params.fit.freeze_epochs:  # DDP decides at its start which gradients to sum
        yield (
            f"fit.freeze_epochs = {params.fit.freeze_epochs} does not work with several devices; set it to 0, or "
            "trainer.devices and num_nodes to 1"
        )
    if params.debug.overfit_batches:
        yield (
            f"debug.overfit_batches = {params.debug.overfit_batches} does not work with several devices; set it to 0, "
            "or trainer.devices and num_nodes to 1"
        )


def _fsdp(params: Params) -> Iterator[str]:
    if params.trainer.strategy != "fsdp":
        return
    for key, allowed in (
        ("optimizer.name", ("adamw", "sgd")),  # muon's step needs whole matrices
        ("optimizer.weight_decay", (0,)),  # a shard does not tell a matrix from a norm
        ("fit.gradient_clip_val", (None,)),  # Lightning refuses to clip by norm
        ("fit.averaging", ("none",)),
        ("fit.freeze_share", (0,)),  # a shard holds frozen and other weights
        ("model.system", ("classifier",)),  # others may need the whole network at the end of the fit
        ("trainer.compile", (None,)),
    ):
        value = attrgetter(key)(params)
        if value not in allowed:
            expected = " or ".join(map(as_in_yaml, allowed))
            yield f"{key} = {as_in_yaml(value)} does not work with trainer.strategy = fsdp; set it to {expected}"


def _freezing(params: Params) -> Iterator[str]:
    if params.model.weights is None and params.fit.freeze_epochs >= params.fit.max_epochs:
        yield (
            f"fit.freeze_epochs = {params.fit.freeze_epochs} of {params.fit.max_epochs} epochs would leave all layers "
            "but the last at their random initial weights; lower it, or set model.weights"
        )
    if params.fit.freeze_share and params.trainer.sync_batchnorm:
        yield (
            f"fit.freeze_share = {params.fit.freeze_share:g} does not work with trainer.sync_batchnorm = true, which "
            "replaces the frozen layers; set one of them to its default"
        )
    if params.model.weights is None and params.fit.freeze_share:
        yield (
            f"fit.freeze_share = {params.fit.freeze_share:g} would leave the first layers at their random initial "
            "weights; set it to 0, or set model.weights"
        )


def _head_alone(params: Params) -> Iterator[str]:
    if params.fit.train != "head":
        return
    if params.model.system != "classifier":
        yield (
            f"fit.train = head does not work with model.system = {params.model.system}; set model.system to "
            "classifier, or fit.train to all"
        )
    elif params.model.weights is None:
        yield (
            "fit.train = head would leave all layers but the last at their random initial weights; set model.weights, "
            "or fit.train to all"
        )
    if params.trainer.world_size > 1:
        yield "fit.train = head does not work with several devices; set trainer.devices and num_nodes to 1"


def _monitor(params: Params) -> Iterator[str]:
    logged = {"classifier": ["val_loss", "val_accuracy"], "autoencoder": ["val_loss"]}.get(params.model.system)
    if logged and params.fit.monitor not in logged:
        yield (
            f"fit.monitor = {params.fit.monitor} is not logged by model.system = {params.model.system}"
            f"{nearest(params.fit.monitor, logged)}; expected {' or '.join(logged)}"
        )
