"""Load pretrained weights, torchvision's or a file's, into a network; its head stays new if the output size differs."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from refit.params import WEIGHTS_FILES, ModelParams, nearest
from refit.runtime.errors import UserError
from refit.systems.head import head
from refit.systems.networks import GreyToRgb, Normalize

_PATIENCE = 20.0  # seconds for a server to answer
_OURS = "network."  # prefix of the network's weights in a model that Refit trained

State = dict[str, Tensor]


def load_weights(network: nn.Module, model: ModelParams) -> None:
    """Load the weights that `model.weights` names into a network from build_network.

    The head stays newly initialised if its number of outputs differs. The input is normalised as it was when the
    weights were trained: a model of Refit's contains its mean and std; for a torchvision network they are those of
    torchvision's weights, also for a file from elsewhere; for any other network they stay those of the training images.
    Raises UserError if the weights cannot be read or downloaded, or other tensors are missing, unexpected or of another
    shape.
    """
    assert isinstance(network, nn.Sequential)
    assert model.weights is not None
    from_torchvision = model.network.startswith("torchvision:")
    normalize, inner = network[0], network[1]
    assert isinstance(normalize, Normalize)
    if isinstance(inner, nn.Sequential) and isinstance(inner[0], GreyToRgb):
        inner = inner[1]
    state = _from_file(model.weights) if is_file_name(model.weights) else _from_torchvision(model)
    if f"{_OURS}0.mean" in state:
        mean, std = state[f"{_OURS}0.mean"].flatten(), state[f"{_OURS}0.std"].flatten()
        state = _inside(f"{_OURS}1.", state)
        if from_torchvision and all(name.startswith("1.") for name in state):  # it was trained on grey images
            state = _inside("1.", state)
    elif from_torchvision:
        input_of = _torchvision_weights(model).transforms()
        mean, std = torch.tensor(input_of.mean), torch.tensor(input_of.std)
    else:
        mean, std = normalize.mean.flatten(), normalize.std.flatten()
    new_head = _fit(inner, state, model.weights)
    _set_channels(normalize.mean, mean)
    _set_channels(normalize.std, std)
    print(f"weights from {model.weights}" + (f", and a new last layer, {new_head}" if new_head else ""), flush=True)


def check_weights(model: ModelParams) -> None:
    """Raises UserError unless `model.weights` is an existing file, or weights that torchvision has for this network."""
    assert model.weights is not None
    if not is_file_name(model.weights):
        _torchvision_weights(model)
    elif not Path(model.weights).is_file():
        raise UserError(f"model.weights = {model.weights!r} does not exist; put the file into {WEIGHTS_FILES}/")


def check_weights_can_be_had(model: ModelParams) -> None:
    """As check_weights; it also reads the file, or asks torchvision's server for it if it was not downloaded before.
    Raises UserError."""
    assert model.weights is not None
    check_weights(model)
    if is_file_name(model.weights):
        _from_file(model.weights)
        return
    weights = _torchvision_weights(model)
    if Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2]).is_file():
        return
    try:
        urlopen(weights.url, timeout=_PATIENCE).close()
    except OSError as error:
        raise _not_downloaded(model.weights, weights.url, error) from None


def identity(model: ModelParams) -> str | None:
    """An identifier of the weights: a file's sha256, or the URL of torchvision's weights."""
    if model.weights is None:
        return None
    check_weights(model)
    if is_file_name(model.weights):
        return hashlib.sha256(Path(model.weights).read_bytes()).hexdigest()
    return str(_torchvision_weights(model).url)


def is_file_name(weights: str) -> bool:
    return "." in weights


def _torchvision_weights(model: ModelParams) -> Any:
    """The entry in torchvision that `model.weights` names; for a file, the network's default entry."""
    assert model.weights is not None
    known = torchvision.models.get_model_weights(model.network.partition(":")[2])
    if is_file_name(model.weights):
        return known["DEFAULT"]
    if model.weights not in known.__members__:
        raise UserError(
            f"model.weights = {model.weights!r} is unknown{nearest(model.weights, list(known.__members__))}; "
            f"{model.network} has {', '.join(known.__members__)}"
        )
    return known[model.weights]


def _from_torchvision(model: ModelParams) -> State:
    weights = _torchvision_weights(model)
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, or a file whose hash is not the one in its name
        raise _not_downloaded(model.weights, weights.url, error) from None
    return state


def _not_downloaded(weights: str | None, url: str, error: Exception) -> UserError:
    return UserError(
        f"model.weights = {weights!r} cannot be downloaded from {url}: {' '.join(str(error).split())}; or put the file "
        f"into {WEIGHTS_FILES}/ and name it"
    )


def _from_file(weights: str) -> State:
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"model.weights = {weights!r} does not exist; put the file into {WEIGHTS_FILES}/")
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


def _fit(network: nn.Module, state: State, weights: str) -> str:
    """Load `state` into `network`; returns the head's name if the head is new, else an empty string."""
    expected, last = network.state_dict(), head(network)
    (head_name,) = (name for name, layer in network.named_modules() if layer is last)
    # torchvision's densenets have names from a time when a module's name could contain a dot.
    for name in [name for name in state if re.search(r"denselayer\d+\.(norm|conv)\.[12]\.", name)]:
        state[re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name)] = state.pop(name)
    heads = {name for name in expected if name.rpartition(".")[0] == head_name}
    is_new = any(name not in state or state[name].shape != expected[name].shape for name in heads)
    if is_new:
        state.update({name: expected[name] for name in heads})
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
    return head_name if is_new else ""


def _with_shapes(name: str, state: State, expected: State) -> str:
    both = name in state and name in expected
    return f"{name} (weights {list(state[name].shape)}, network {list(expected[name].shape)})" if both else name


def _differ(own: Tensor, other: Tensor | None) -> bool:
    return other is not None and own.shape != other.shape


def _set_channels(own: Tensor, values: Tensor) -> None:
    """Set one value per channel; for a grey image, the mean of a colour image's values."""
    channels = own.shape[1]
    own.copy_((values if len(values) in (1, channels) else values.mean(dim=0, keepdim=True)).view(1, -1, 1, 1))
