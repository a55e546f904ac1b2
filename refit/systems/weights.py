"""Load pretrained weights, a library's or a file's, into a network; its head is new if the output size differs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from refit.params import WEIGHTS_FILES, ModelParams, nearest
from refit.params.model import is_file_name
from refit.runtime.downloads import fault_of
from refit.runtime.errors import UserError
from refit.systems.head import head_names
from refit.systems.libraries import Library, Pretrained, State, library_of, without_adapter
from refit.systems.networks import Normalize

_OURS = "network."  # prefix of the network's weights in a model that Refit trained


def load_weights(network: nn.Module, model: ModelParams, *, to_logits: bool = True) -> None:
    """Load the weights that `model.weights` names into a network from build_network.

    The head stays new if its number of outputs differs. A new head starts at zero if the network maps `to_logits`:
    then all classes are equally probable, and the first loss is the logarithm of their number.

    The input is normalised as it was when the weights were trained: a model of Refit's contains its mean and std; a
    library knows those of its weights, and for a file those of its network; for any other network they stay those of
    the training images. Raises UserError if the weights cannot be read or downloaded, or other tensors are missing,
    unexpected or of another shape.
    """
    assert isinstance(network, nn.Sequential)
    assert model.weights is not None
    normalize, inner = network[0], without_adapter(network[1])
    assert isinstance(normalize, Normalize)
    library = library_of(model.network)
    state = _from_file(model.weights) if is_file_name(model.weights) else _fetch(model)
    mean: Sequence[float] | Tensor
    std: Sequence[float] | Tensor
    if f"{_OURS}0.mean" in state:
        mean, std = state[f"{_OURS}0.mean"].flatten(), state[f"{_OURS}0.std"].flatten()
        state = _inside(f"{_OURS}1.", state)
        if library and all(name.startswith("1.") for name in state):  # it was trained on grey images
            state = _inside("1.", state)
    elif library:
        mean, std = _input_of(library, model)
    else:
        mean, std = normalize.mean.flatten(), normalize.std.flatten()
    if library:
        state = library.adapt(library.name_in(model.network), inner, model.network_arguments, state)
    new = _fit(inner, state, model.weights)
    at_zero = _start_at_zero(inner, new) if to_logits else []
    _set_channels(normalize.mean, torch.as_tensor(mean))
    _set_channels(normalize.std, torch.as_tensor(std))
    told = f", and a new last layer, {' and '.join(new)}" if new else ""
    print(f"weights from {model.weights}{told}{', which starts at zero' if at_zero else ''}", flush=True)


def check_weights(model: ModelParams) -> None:
    """Raises UserError unless `model.weights` is an existing file, or weights that the library has for this network."""
    assert model.weights is not None
    if not is_file_name(model.weights):
        _named(model)
    elif not Path(model.weights).is_file():
        raise _missing(model.weights)


def check_weights_can_be_had(model: ModelParams) -> None:
    """As check_weights; it also reads the file, or asks the library's server for it if it was not downloaded before.
    Raises UserError."""
    assert model.weights is not None
    check_weights(model)
    if is_file_name(model.weights):
        _from_file(model.weights)
        return
    weights = _named(model)
    if not weights.is_downloaded() and (fault := fault_of(weights.urls)):
        raise _not_downloaded(model.weights, weights.urls[0], fault)


def identity(model: ModelParams) -> str | None:
    """An identifier of the weights: a file's sha256, or the URL of the library's weights."""
    if model.weights is None:
        return None
    check_weights(model)
    if is_file_name(model.weights):
        return hashlib.sha256(Path(model.weights).read_bytes()).hexdigest()
    return _named(model).urls[0]


def input_size(model: ModelParams) -> int | None:
    """Side of the square images, in pixels, that `model.weights` were trained on: as a library says of weights that it
    names, and of its network for a file. None for another network, or without weights. Raises UserError as
    check_weights."""
    library = library_of(model.network)
    if library is None or model.weights is None:
        return None
    return library.size_of(library.name_in(model.network)) if is_file_name(model.weights) else _named(model).size


def _missing(weights: str) -> UserError:
    there = sorted(file.name for file in WEIGHTS_FILES.glob("[!.]*"))
    known = f", which has {', '.join(there)}" if there else ""
    return UserError(f"model.weights = {weights!r} does not exist; put the file into {WEIGHTS_FILES}/{known}")


def _named(model: ModelParams) -> Pretrained:
    """The library's weights that `model.weights` names."""
    library = library_of(model.network)
    assert library is not None
    assert model.weights is not None
    known = library.pretrained(library.name_in(model.network))
    if not known:
        raise UserError(
            f"model.weights = {model.weights!r}, but {library.prefix.rstrip(':')} has no weights for {model.network}; "
            f"set it to null or to a file below {WEIGHTS_FILES}/"
        )
    if model.weights not in known:
        raise UserError(
            f"model.weights = {model.weights!r} is unknown{nearest(model.weights, list(known))}; "
            f"{model.network} has {', '.join(known)}"
        )
    return known[model.weights]


def _input_of(library: Library, model: ModelParams) -> tuple[Sequence[float], Sequence[float]]:
    assert model.weights is not None
    if is_file_name(model.weights):
        return library.input_of(library.name_in(model.network))
    weights = _named(model)
    return weights.mean, weights.std


def _fetch(model: ModelParams) -> State:
    weights, library = _named(model), library_of(model.network)
    assert library is not None
    assert model.weights is not None
    try:
        return library.fetch(library.name_in(model.network), model.weights)
    except Exception as error:  # noqa: BLE001, no network, a file whose hash is not the one in its name, and much more
        raise _not_downloaded(model.weights, weights.urls[0], error) from None


def _not_downloaded(weights: str | None, url: str, error: Exception) -> UserError:
    return UserError(
        f"model.weights = {weights!r} cannot be downloaded from {url}: {' '.join(str(error).split())}; or put the file "
        f"into {WEIGHTS_FILES}/ and name it"
    )


def _from_file(weights: str) -> State:
    path = Path(weights)
    if not path.is_file():
        raise _missing(weights)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, a truncated file can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.weights = {weights!r} is not a weights file: {reason}") from None
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise UserError(f"model.weights = {weights!r} is not a state_dict; expected a dictionary of tensors only")
    return state


def _inside(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _fit(network: nn.Module, state: State, weights: str) -> list[str]:
    """Load `state` into `network`; returns the names of the head's layers that are new."""
    expected, new = network.state_dict(), []
    for layer in head_names(network):
        tensors = [name for name in expected if name.rpartition(".")[0] == layer]
        if any(name not in state or state[name].shape != expected[name].shape for name in tensors):
            state = state | {name: expected[name] for name in tensors}
            new.append(layer)
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # old files lack them
    wrong = [
        name for name in expected if name not in counters | state.keys() or _differ(expected[name], state.get(name))
    ]
    wrong += [name for name in state if name not in expected]
    if wrong:
        shown = ", ".join(_with_shapes(name, state, expected) for name in wrong[:4])
        shown += f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"model.weights = {weights!r} does not fit: missing, unexpected or of another shape: {shown}; choose the "
            "model.network, width and data.color that it was trained with"
        )
    network.load_state_dict(state)
    return new


def _start_at_zero(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Set the weights of those of the head's `layers` to zero that give the outputs; returns their names."""
    outputs = network.state_dict()[f"{head_names(network)[-1]}.weight"].shape[:1]
    # Not a hidden layer or a norm, which would pass on no feature; nor a layer with a ReLU after it, whose gradient is
    # zero there.
    names = [
        name for name in layers
        if isinstance(layer := network.get_submodule(name), nn.Linear | nn.Conv2d)
        and layer.weight.shape[:1] == outputs and not _is_rectified(network, name)
    ]  # fmt: skip
    for name in names:
        for weight in network.get_submodule(name).parameters():
            nn.init.zeros_(weight)
    return names


def _is_rectified(network: nn.Module, name: str) -> bool:
    """Whether a ReLU follows the layer `name`, as in torchvision's squeezenets."""
    parent, layer = network.get_submodule(name.rpartition(".")[0]), network.get_submodule(name)
    after = [*parent.children()][[*parent.children()].index(layer) + 1 :] if isinstance(parent, nn.Sequential) else []
    return any(isinstance(one, nn.ReLU) for one in after)


def _with_shapes(name: str, state: State, expected: State) -> str:
    both = name in state and name in expected
    return f"{name} (weights {list(state[name].shape)}, network {list(expected[name].shape)})" if both else name


def _differ(own: Tensor, other: Tensor | None) -> bool:
    return other is not None and own.shape != other.shape


def _set_channels(own: Tensor, values: Tensor) -> None:
    """Set one value per channel; for a grey image, the mean of a colour image's values."""
    channels = own.shape[1]
    own.copy_((values if len(values) in (1, channels) else values.mean(dim=0, keepdim=True)).view(1, -1, 1, 1))
