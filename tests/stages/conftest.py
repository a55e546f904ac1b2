"""A copy of the project in a git and DVC repository of its own, where the pipeline really runs."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from pipelines.tools.workspace import copy_working_tree

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Project:
    root: Path
    _committed: object = None
    """What is in data/ at the last commit, as far as a look at the folder tells."""

    def run(self, *command: str, ok: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project as a user would; its output is captured."""
        done = subprocess.run(
            command, cwd=self.root, env=user_environment(**environment), capture_output=True, text=True, check=False
        )
        assert not ok or done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def set_param(self, key: str, value: object) -> None:
        """Change one value in params.yaml as `dvc exp run -S` does. `key` is section.name."""
        apply_overrides(self.root / "params.yaml", [f"{key}={value}"])

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "a state")
        self._committed = None

    def restore(self) -> None:
        """Back to the last commit, with its outputs. Seconds of `dvc checkout` are saved where nothing touched them."""
        (self.root / "params.yaml").touch()  # after a failed `dvc exp run` git takes the changed file for unchanged
        self.run("git", "reset", "--quiet", "--hard")
        if self._committed != self._look():
            self.run("dvc", "checkout", "--quiet", "--force")
            self._committed = self._look()

    def _look(self) -> object:
        """Each file in data/ by its name, size, time and inode."""
        files = [(path, path.stat()) for path in (self.root / "data").rglob("*") if path.is_file()]
        return {path: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in files}

    def stale(self) -> list[str]:
        """The stages that DVC would run as things are; what they write may make those below them stale in turn.

        Runs `check`, on whose outputs the others depend.
        """
        checked = self.run("dvc", "repro", "check").stdout
        return re.findall(r"Running stage '(\w+)'", checked + self.run("dvc", "repro", "--dry").stdout)

    def outputs(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted((self.root / "data").rglob("*"))
            if path.is_file()
        }


def user_environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    author = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return kept | author | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | changes


def make_project(root: Path) -> Project:
    """The working copy's files, ignored ones left behind, as a repository with one commit."""
    copy_working_tree(ROOT, root)
    project = Project(root)
    (root / "dvc.lock").unlink(missing_ok=True)
    project.set_param("fit.max_epochs", 3)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit()
    return project


def make_photos(folder: Path, count: int, seed: int, prefix: str = "") -> None:
    """Noisy photos of two classes, of many sizes: bright above, or bright on the left."""
    random = np.random.default_rng(seed)
    for number in range(count):
        for name in ("above", "left"):
            height, width = random.integers(40, 120, 2)
            pixels = random.integers(0, 100, (height, width, 3))
            pixels[: height // 2 if name == "above" else height, : width // 2 if name == "left" else width] += 120
            target = folder / name / f"{prefix}{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(target)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after one `dvc repro` on the embedded data, its dvc.lock committed."""
    project = make_project(tmp_path_factory.mktemp("reproduced"))
    project.run("dvc", "repro")
    project.commit()
    return project


@pytest.fixture
def project(reproduced: Project) -> Project:
    """The reproduced project, put back as it was before each test."""
    reproduced.restore()
    return reproduced
