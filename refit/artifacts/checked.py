"""Fingerprints of each stage's code: `check` writes data/checked/NAME.json, on which the stage NAME depends."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from refit.artifacts.files import read_json, whole_folder, write_json
from refit.artifacts.paths import CHECKED
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import PROJECT, code_of

_SHOWN = 3  # changes shown per stage


def write_checked(own: Sequence[str], root: Path = PROJECT) -> list[str]:
    """Write the code fingerprints of each stage but `check`. Returns a line for each stage whose code changed, unless
    it is the code of the stage's last run again.

    `own` are the values of model.system and model.network. Raises UserError as code_of.
    """
    stages = sorted(path.stem for path in (root / "stages").glob("[!_]*.py") if path.stem != "check")
    code = {stage: code_of(stage, own, root) for stage in stages}
    lines: dict[str, str] = {}
    for stage in stages:
        with suppress(UserError):  # the file does not exist yet, or is damaged
            found = _differences(read_json(CHECKED / f"{stage}.json", "dvc repro check"), code[stage])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            lines |= {stage: f"{stage}: {', '.join(found[:_SHOWN])}{more}"} if found else {}
    with whole_folder(CHECKED) as folder:
        for stage in stages:
            write_json(folder / f"{stage}.json", code[stage])
    return [line for stage, line in lines.items() if _md5(CHECKED / f"{stage}.json") != _md5_of_last_run(stage)]


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _md5_of_last_run(stage: str) -> str | None:
    """The hash of the stage's fingerprints when it last ran, by dvc.lock; None if it is not there."""
    try:
        deps = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"][stage]["deps"]
        return next((dep["md5"] for dep in deps if dep["path"] == str(CHECKED / f"{stage}.json")), None)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # no lock yet, or one that is cut short
        return None


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A description of each difference, files first."""
    names = sorted(before.keys() | now.keys(), key=lambda name: (not name.endswith(".py"), name))
    return [_difference(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _difference(name: str, before: str | None, now: str | None) -> str:
    if before is None:
        return f"{name} is new"
    if now is None:
        return f"{name} is no longer used"
    return f"{name} changed" if name.endswith(".py") else f"{name} {before} -> {now}"
