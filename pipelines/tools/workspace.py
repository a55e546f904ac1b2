"""A copy of the project in another folder, in which the pipeline can run and leave this one as it is."""

import shutil
import subprocess
from pathlib import Path

import yaml


def copy_working_tree(root: Path, copy: Path) -> None:
    """The files of `root` that git tracks or does not ignore, as they are now, edits and all."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((root / name).read_bytes())


def bring_images(root: Path, copy: Path) -> None:
    """The images that git does not keep, from where params.yaml has them, if that is in the repository."""
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    for name in (params["data"]["root"], params["predict"]["images"]):
        if not Path(name).is_absolute():
            shutil.copytree(root / name, copy / name, dirs_exist_ok=True)
