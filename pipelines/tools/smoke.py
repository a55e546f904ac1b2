"""`make smoke`: run every stage of every system once, on a few batches, in a temporary folder.

It uses the code and params.yaml of this folder as they are now. Outputs, dvc.lock, cache and MLflow are not touched.
"""

import os
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from pipelines.tools.workspace import bring_images, copy_working_tree
from refit.params import OUR_SYSTEMS, load_params
from refit.runtime.command import run_command
from refit.runtime.warm import OWNER

BATCHES = 2
ONLY_SOME_SYSTEMS = (
    "augment.train_size", "augment.mixup", "augment.cutmix", "model.embedding", "model.system_arguments",
    "model.test_time_flip", "loss.label_smoothing", "loss.class_weights", "fit.train", "fit.l2", "fit.monitor",
    "trainer.strategy",
)  # fmt: skip


def main() -> None:
    """Exits with the code of the first `dvc repro` that fails, or 0."""
    root = Path.cwd()
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "refit"
        copy_working_tree(root, copy)
        bring_images(root, copy)
        subprocess.run(["git", "init", "--quiet", str(copy)], check=True)
        share_prepared(root, copy)
        params = load_params(copy / "params.yaml").model_dump()
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", OWNER: str(os.getpid())}
        own = params["model"]["system"]
        for system in dict.fromkeys([*OUR_SYSTEMS, own]):
            began = time.monotonic()
            trial = deepcopy(params)
            if system != own:  # these choices may not suit another system
                for key in ONLY_SOME_SYSTEMS:
                    section, _, name = key.partition(".")
                    del trial[section][name]  # so it takes its default
                trial["model"]["system"] = system
            trial["debug"]["fast_dev_run"] = BATCHES
            (copy / "params.yaml").write_text(yaml.safe_dump(trial), encoding="utf-8")
            done = subprocess.run(["dvc", "repro", "--no-commit"], cwd=copy, env=environment, check=False)
            if done.returncode:
                print(f"error: {system} does not go through all stages", file=sys.stderr)
                sys.exit(done.returncode)
            print(f"smoke: {system} goes through all stages, {time.monotonic() - began:.0f} s", flush=True)


def share_prepared(root: Path, copy: Path) -> None:
    """Take a data set that is in the cache from there; `--no-commit` adds nothing to it."""
    subprocess.run(["dvc", "config", "--local", "cache.dir", str(root / ".dvc/cache")], cwd=copy, check=True)


if __name__ == "__main__":
    run_command(main)
