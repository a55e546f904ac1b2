"""The Trainer made from the trainer section."""

from importlib.util import find_spec

import pytest
import torch

from refit.runtime.errors import UserError
from refit.training.trainer import make_trainer
from tests.fixtures import Changed

ABSENT = {
    "gpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    "mps": not torch.backends.mps.is_available(),
    "tpu": find_spec("torch_xla") is None,
}


@pytest.mark.parametrize("accelerator", [name for name, absent in ABSENT.items() if absent])
def test_an_unavailable_accelerator_fails_with_an_error_that_names_its_key(accelerator: str, changed: Changed) -> None:
    with pytest.raises(
        UserError, match=rf"trainer\.accelerator = '{accelerator}': .* no {accelerator} .*; set it to auto"
    ):
        make_trainer(changed({"trainer.accelerator": accelerator}).trainer)


@pytest.mark.skipif(not ABSENT["gpu"], reason="this machine has a GPU")
def test_on_a_machine_with_only_a_cpu_the_accelerator_error_says_so(changed: Changed) -> None:
    with pytest.raises(UserError) as raised:
        make_trainer(changed({"trainer.accelerator": "gpu"}).trainer)
    assert str(raised.value) == (
        "trainer.accelerator = 'gpu': PyTorch finds no gpu on this machine, only cpu; set it to auto or cpu"
    )
