"""A copy of the project in another folder, where the pipeline can run without touching this one."""

import shutil
import subprocess
from pathlib import Path

import yaml


def copy_working_tree(root: Path, copy: Path) -> None:
    """Copy the files of `root` that git tracks or does not ignore, with their uncommitted changes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((root / name).read_bytes())


def bring_images(root: Path, copy: Path) -> None:
    """Copy the images, which git does not track, if params.yaml has them in the repository."""
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    for name in (params["data"]["root"], params["predict"]["images"]):
        if not Path(name).is_absolute():
            shutil.copytree(root / name, copy / name, dirs_exist_ok=True)
