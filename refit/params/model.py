"""Section `model`: what is trained."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from refit.params.spelling import nearest, nearest_network
from refit.params.types import Fraction, Section

OUR_SYSTEMS = ("classifier", "autoencoder")
OUR_NETWORKS = ("mlp", "cnn", "resnet9", "airbench")
TORCHVISION, TIMM = "torchvision:", "timm:"
LIBRARIES = (TORCHVISION, TIMM)
WEIGHTS_FILES = Path("data/weights")
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")


def _not_empty_text(weights: Any) -> Any:
    if weights == "":  # as `dvc exp run -S model.weights=` sets it
        raise ValueError("empty text is no weights; expected null (random weights), the name of torchvision's or "
                         f"timm's weights such as DEFAULT, or a file below {WEIGHTS_FILES}/")  # fmt: skip
    return weights


class ModelParams(Section):
    system: str = "classifier"
    """What is trained: classifier, autoencoder, or the dotted path of your own LightningModule (docs/systems.md)."""
    system_arguments: dict[str, Any] = Field(default={})
    """Arguments of your own system, by the names in its signature."""
    network: str = "cnn"
    """The network: mlp, cnn, resnet9 or airbench (Refit's own, for small images), torchvision:NAME or timm:NAME for any
    classifier of these libraries, or the dotted path of your own module (docs/systems.md)."""
    network_arguments: dict[str, Any] = Field(default={})
    """Arguments of your own network, by the names in its signature; or of a network of torchvision or timm, such as
    drop_path_rate."""
    weights: Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_not_empty_text)] = None
    """The network's initial weights. null: random. A name such as DEFAULT: weights that torchvision or timm has for its
    network (timm: a tag). A file below data/weights/ (.safetensors, .pt or .pth): a state_dict of the network, or the
    model.safetensors of a model that Refit trained. The last layer is new if the file lacks it or its number of outputs
    differs. Only the training stages read the weights."""
    embedding: Annotated[int, Field(ge=2, le=4096)] = 64
    """Length of the autoencoder's embeddings."""
    width: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Channels of the first layer of Refit's own networks (mlp: hidden units). null: the network's default."""
    dropout: Fraction | None = None
    """Dropout probability before the last layer of Refit's own networks (mlp: after each hidden layer). null: the
    network's default."""
    test_time_flip: bool = False
    """In test and predict, average the logits of each image and its mirror image."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if self.system not in OUR_SYSTEMS and "." not in self.system:
            raise ValueError(f"system {self.system!r} is unknown{nearest(self.system, [*OUR_SYSTEMS])}; expected "
                             f"{', '.join(OUR_SYSTEMS)} or a dotted path")  # fmt: skip
        # Importing a library or the user's module is slow: refit/systems checks that the rest of the name exists.
        if self.network not in OUR_NETWORKS and not self.network.startswith(LIBRARIES) and "." not in self.network:
            near = nearest_network(self.network, [*OUR_NETWORKS], TORCHVISION, TIMM)
            raise ValueError(f"network {self.network!r} is unknown{near}; expected {', '.join(OUR_NETWORKS)}, "
                             f"{TORCHVISION}NAME, {TIMM}NAME or a dotted path")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _weights_can_be_read(self) -> Self:
        if self.weights is None:
            return self
        if "." not in self.weights:
            if not self.network.startswith(LIBRARIES):
                raise ValueError(f"weights {self.weights!r} is a name, but only networks of torchvision and timm have "
                                 f"named weights; expected a file below {WEIGHTS_FILES}/, or null")  # fmt: skip
            return self
        path = Path(self.weights)
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise ValueError(f"weights {self.weights!r} has an unknown file type; expected one of "
                             f"{', '.join(WEIGHTS_SUFFIXES)}")  # fmt: skip
        if ".." in path.parts or not path.is_relative_to(WEIGHTS_FILES):
            raise ValueError(f"weights {self.weights!r} is not below {WEIGHTS_FILES}/, the folder that dvc.yaml "
                             "watches; move the file there")  # fmt: skip
        return self


def is_file_name(weights: str) -> bool:
    """Whether a value of model.weights names a file, and not weights of a library."""
    return "." in weights
