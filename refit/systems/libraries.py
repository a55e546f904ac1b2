"""The image classifiers of torchvision and timm, by name, and the weights that these libraries have for them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor, nn

from refit.params import TIMM, TORCHVISION, nearest
from refit.runtime.downloads import fault_of, hub_urls, is_in_hub_cache
from refit.runtime.errors import UserError
from refit.systems.head import head_names, timm_network

State = dict[str, Tensor]


@dataclass(frozen=True)
class Pretrained:
    """Weights that a library has for one of its networks."""

    urls: Sequence[str]
    """Where they can be: they are at one of these addresses. The first identifies them."""
    mean: Sequence[float]
    """Mean, and below standard deviation, by which their training normalised images with pixels scaled to 0..1."""
    std: Sequence[float]
    size: int
    """Side of the square images that they were trained on, in pixels."""
    is_downloaded: Callable[[], bool]


class Library(ABC):
    """A library of networks. `model.network` names one of them as PREFIX:NAME; the methods take the NAME."""

    prefix: ClassVar[str]
    example: ClassVar[str]
    """What an error suggests for an unknown name."""
    provided: ClassVar[frozenset[str]]
    """Arguments that Refit sets itself, or that would load weights."""

    @abstractmethod
    def names(self) -> list[str]:
        """The networks on offer."""

    @abstractmethod
    def create(
        self, name: str, outputs: int, size: tuple[int, int] | None = None, arguments: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """A newly initialised network for colour images of `size` (H, W), or of its usual size. An invalid argument
        raises whatever the library raises."""

    @abstractmethod
    def pretrained(self, name: str) -> dict[str, Pretrained]:
        """The weights by name. One name is DEFAULT; a network without weights gives an empty dictionary."""

    @abstractmethod
    def input_of(self, name: str) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation by which the library usually normalises the network's images."""

    @abstractmethod
    def size_of(self, name: str) -> int:
        """Side of the square images, in pixels, that the library usually trains the network on."""

    @abstractmethod
    def fetch(self, name: str, weights: str) -> State:
        """The state_dict of `weights`, a name from pretrained(); downloaded unless it was before."""

    @abstractmethod
    def adapt(self, name: str, network: nn.Module, arguments: Mapping[str, Any], state: State) -> State:
        """`state` by the names of `network`, which create() has made, and for its image size. What cannot be adapted is
        returned as it is."""

    def check(self, network: str, arguments: Mapping[str, Any]) -> None:
        """Raises UserError unless `network`, PREFIX:NAME, is one of the library's and takes `arguments`."""
        self.check_name(network)
        for argument in arguments:
            if argument in self.provided:
                raise UserError(f"model.network_arguments.{argument}: Refit itself sets {argument}; remove it")
        if not arguments:
            return
        try:
            self.create(self.name_in(network), outputs=2, arguments=arguments)
        except Exception as error:  # noqa: BLE001, a value of a wrong type can raise anything
            reason = " ".join(str(error).split())
            raise UserError(f"model.network_arguments = {dict(arguments)} do not fit {network}: {reason}") from None

    def check_name(self, network: str) -> None:
        """Raises UserError unless `network`, PREFIX:NAME, is one of the library's."""
        name, known = self.name_in(network), self.names()
        if name not in known:
            raise UserError(
                f"model.network = {network!r} is unknown{nearest(name, known, self.prefix)}; expected {self.example}"
            )

    def name_in(self, network: str) -> str:
        """The NAME in `network`, PREFIX:NAME."""
        return network.removeprefix(self.prefix)

    def build(self, network: str, arguments: Mapping[str, Any], shape: tuple[int, int, int], outputs: int) -> nn.Module:
        """`network`, PREFIX:NAME, newly initialised, for normalised images (N, *shape), (C, H, W). Raises UserError if
        there is no such network, and what the library raises for a size that the network does not accept."""
        self.check_name(network)
        built = self.create(self.name_in(network), outputs, shape[1:], arguments)
        return nn.Sequential(GreyToRgb(), built) if shape[0] == 1 else built


class Torchvision(Library):
    prefix = TORCHVISION
    example = f"{TORCHVISION} and a classifier of torchvision.models, such as resnet18"
    provided = frozenset({"num_classes", "weights", "weights_backbone", "progress"})

    def names(self) -> list[str]:
        known = torchvision.models.list_models(module=torchvision.models)
        # Only these two return a second output in training.
        return [name for name in known if name not in ("googlenet", "inception_v3")]

    def create(
        self, name: str, outputs: int, size: tuple[int, int] | None = None, arguments: Mapping[str, Any] | None = None
    ) -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=outputs, **(arguments or {}))
        return network

    def pretrained(self, name: str) -> dict[str, Pretrained]:
        return {weights: _of_torchvision(entry) for weights, entry in self._entries(name).items()}

    def input_of(self, name: str) -> tuple[Sequence[float], Sequence[float]]:
        default = self.pretrained(name)["DEFAULT"]
        return default.mean, default.std

    def size_of(self, name: str) -> int:
        return self.pretrained(name)["DEFAULT"].size

    def fetch(self, name: str, weights: str) -> State:
        entry = self._entries(name)[weights]
        state: State = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return state

    def adapt(self, name: str, network: nn.Module, arguments: Mapping[str, Any], state: State) -> State:
        # The densenets have names from a time when a module's name could contain a dot.
        return {_DENSE_LAYER.sub(r"\1\2\3.", tensor): value for tensor, value in state.items()}

    def _entries(self, name: str) -> Mapping[str, Any]:
        entries: Mapping[str, Any] = torchvision.models.get_model_weights(name).__members__
        return entries


class Timm(Library):
    """timm takes seconds to import, so only what needs one of its networks imports it."""

    prefix = TIMM
    example = f"{TIMM} and a name of timm.list_models() without a tag, such as resnet18; model.weights names the tag"
    provided = frozenset({
        "num_classes", "in_chans", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
        "checkpoint_path", "cache_dir",
    })  # fmt: skip

    def names(self) -> list[str]:
        import timm

        return timm.list_models()

    def create(
        self, name: str, outputs: int, size: tuple[int, int] | None = None, arguments: Mapping[str, Any] | None = None
    ) -> nn.Module:
        import timm

        takes_size = size is not None and self._config(name).fixed_input_size
        sized: dict[str, Any] = {"img_size": size} if takes_size else {}
        return timm.create_model(name, num_classes=outputs, **sized, **(arguments or {}))

    def pretrained(self, name: str) -> dict[str, Pretrained]:
        entries = {tag: _of_timm(config) for tag, config in self._configs(name).items()}
        default = self._config(name)
        return entries | ({"DEFAULT": _of_timm(default)} if _has_weights(default) else {})

    def input_of(self, name: str) -> tuple[Sequence[float], Sequence[float]]:
        default = self._config(name)
        return default.mean, default.std

    def size_of(self, name: str) -> int:
        return _size_of_timm(self._config(name))

    def fetch(self, name: str, weights: str) -> State:
        from timm.models import load_state_dict_from_hf

        known = self.pretrained(name)[weights]
        if not known.is_downloaded() and (fault := fault_of(known.urls)):
            raise fault  # the hub's client would try for a minute
        config = self._config(name) if weights == "DEFAULT" else self._configs(name)[weights]
        if config.hf_hub_id:
            file = {"filename": config.hf_hub_filename} if config.hf_hub_filename else {}
            state: State = load_state_dict_from_hf(config.hf_hub_id, **file)
        else:
            state = torch.hub.load_state_dict_from_url(config.url, progress=False, check_hash=True, weights_only=True)
        return state

    def adapt(self, name: str, network: nn.Module, arguments: Mapping[str, Any], state: State) -> State:
        """By timm's own filter, as it loads pretrained weights: it knows earlier names of the tensors, and resamples
        embeddings of positions for another image size. A second network receives them, whose head is that of `state`.
        """
        import timm

        output_layer = state.get(f"{head_names(network)[-1]}.weight")
        outputs = 0 if output_layer is None else len(output_layer)
        size = timm.models.get_model_traits(network).get("img_size")
        try:
            adapted = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": outputs, "label_offset": 0},
                num_classes=outputs,
                **({"img_size": size} if size else {}),
                **arguments,
            )
        except Exception:  # noqa: BLE001, the filters rely on names and shapes; the caller explains what does not fit
            return state
        return adapted.state_dict()

    def _config(self, name: str) -> Any:
        import timm

        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()

    def _configs(self, name: str) -> dict[str, Any]:
        """timm's configurations of the weights, by tag."""
        from timm.models import get_arch_pretrained_cfgs

        configs = get_arch_pretrained_cfgs(name).values()
        return {config.tag: config for config in configs if config.tag and _has_weights(config)}


def _has_weights(config: Any) -> bool:
    return bool(config.hf_hub_id or config.url)


def _of_timm(config: Any) -> Pretrained:
    used, size = (config.mean, config.std), _size_of_timm(config)
    if config.hf_hub_id:
        files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        urls = hub_urls(config.hf_hub_id, files)
        return Pretrained(urls, *used, size, lambda: is_in_hub_cache(config.hf_hub_id, files))
    return Pretrained([config.url], *used, size, lambda: _is_in_torch_cache(config.url))


def _size_of_timm(config: Any) -> int:
    """Not `test_input_size`, which some weights have too: data.image_size is also what a network is trained on, which
    costs two thirds more at 288 pixels than at 224."""
    size: int = max(config.input_size[1:])
    return size


def _of_torchvision(entry: Any) -> Pretrained:
    used = entry.transforms()
    return Pretrained([entry.url], used.mean, used.std, max(used.crop_size), lambda: _is_in_torch_cache(entry.url))


def _is_in_torch_cache(url: str) -> bool:
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]).is_file()


_LIBRARIES: tuple[Library, ...] = (Torchvision(), Timm())
_DENSE_LAYER = re.compile(r"(denselayer\d+\.)(norm|conv)\.([12])\.")


def library_of(network: str) -> Library | None:
    """The library that `network`, a value of model.network, names; None for Refit's own networks and the user's."""
    return next((library for library in _LIBRARIES if network.startswith(library.prefix)), None)


def depths(system: nn.Module) -> dict[nn.Parameter, int]:
    """For each weight of a timm network in `system.network`: how many of timm's groups of layers are between it and
    the head, which has 0. Raises UserError for any other network."""
    import timm.optim
    from timm.models import group_parameters

    network: Any = timm_network(getattr(system, "network", system))
    if network is None:
        raise UserError(
            f"optimizer.layer_decay needs a {TIMM} network as `network` of {type(system).__name__}; set it to 1.0"
        )
    if hasattr(network, "group_matcher"):
        group_of = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    else:
        group_of = timm.optim.auto_group_layers(network)  # type: ignore[attr-defined, no-untyped-call]
    last = max(group_of.values())
    return {weight: last - group_of.get(name, last) for name, weight in network.named_parameters()}


def without_decay(system: nn.Module) -> set[nn.Parameter]:
    """The weights of a timm network in `system.network` that timm says must not decay, such as embeddings of positions;
    empty for any other network."""
    network: Any = timm_network(getattr(system, "network", system))
    names = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    return {weight for name, weight in network.named_parameters() if name in names} if names else set()


def without_adapter(network: nn.Module) -> nn.Module:
    """The library's own network in what Library.build returned."""
    return network[1] if isinstance(network, nn.Sequential) and isinstance(network[0], GreyToRgb) else network


class GreyToRgb(nn.Module):
    """Repeats the channel of a grey image for a network that expects three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
