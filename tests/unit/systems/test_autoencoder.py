"""The autoencoder."""

from pathlib import Path

import pytest
import torch
from torch import nn

from refit.artifacts.prepared import read_info, read_split
from refit.batches.datamodule import PreparedData
from refit.params import Params
from refit.systems.autoencoder import Autoencoder, Neighbours
from refit.systems.build import build_system
from refit.training.trainer import make_trainer
from tests.fixtures import Changed


def build(params: Params, digits: Path, learning_rate: float = 0.0) -> Autoencoder:
    torch.manual_seed(0)
    system = build_system(params.model, read_info(digits), params.optimizer, params.loss, learning_rate)
    assert isinstance(system, Autoencoder)
    return system


@pytest.fixture
def autoencoder(changed: Changed, digits: Path) -> Autoencoder:
    return build(changed({"model.system": "autoencoder", "model.network": "cnn"}), digits)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (1, 28, 28)])
def test_a_reconstruction_has_the_shape_of_the_image(shape: tuple[int, int, int]) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 5))
    system = Autoencoder(nn.Sequential(_Float(), encoder), shape, 2, [0.5] * shape[0], [0.5] * shape[0]).eval()
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    again = system.reconstruct(images)
    assert (again.shape, again.dtype) == (images.shape, torch.uint8)


class _Float(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images / 255


def test_the_mean_image_has_a_reconstruction_error_of_one(autoencoder: Autoencoder, digits: Path) -> None:
    images = torch.from_numpy(read_split("train", digits).images)
    errors = autoencoder._errors(images, torch.zeros(images.shape))
    assert errors.shape == (len(images),)
    assert errors.mean().item() == pytest.approx(1, abs=0.01)


def test_the_autoencoder_learns_to_reconstruct_and_its_neighbours_predict_the_classes(
    changed: Changed, digits: Path
) -> None:
    params = changed({"model.system": "autoencoder", "model.network": "cnn", "fit.max_epochs": 4})
    system = build(params, digits, 0.003)
    data = PreparedData(params.augment, 64, 64, 0, digits)
    split = read_split("test", digits)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    with torch.no_grad():
        before = system.eval()._errors(images, system.decoder(system.network(images))).mean()
    make_trainer(params.trainer, max_epochs=4).fit(system.train(), datamodule=data)
    with torch.no_grad():
        answers = system.eval()(images)
    assert answers["reconstruction_error"].mean() < 0.5 * before
    torch.testing.assert_close(answers["probabilities"].sum(dim=1), torch.ones(len(labels)))
    hits = answers["probabilities"].argmax(dim=1) == labels
    assert hits.float().mean() > 0.8
    assert len(system.neighbours.labels) == len(data.train.labels)


def test_the_nearest_neighbours_by_angle_vote_and_nearer_ones_count_more() -> None:
    neighbours = Neighbours(2, 3)
    neighbours.remember(torch.tensor([[9.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 2]))
    votes = neighbours(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    assert votes.argmax(dim=1).tolist() == [0, 1]
    similarity = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])) @ torch.tensor([0.0, 1.0])
    torch.testing.assert_close(votes[1], (similarity / 0.07).softmax(0))


def test_any_number_of_neighbours_can_be_loaded(autoencoder: Autoencoder, changed: Changed,
                                                              digits: Path) -> None:  # fmt: skip
    autoencoder.neighbours.remember(torch.rand(7, 8), torch.arange(7))
    again = build(changed({"model.system": "autoencoder", "model.network": "cnn"}), digits)
    again.load_state_dict(autoencoder.state_dict())
    assert torch.equal(again.neighbours.embeddings, autoencoder.neighbours.embeddings)
    assert torch.equal(again.neighbours.labels, torch.arange(7))
