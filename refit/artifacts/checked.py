"""The code and the parameters of each stage: `check` writes data/checked/NAME.json, on which the stage NAME depends."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from refit.artifacts.files import read_json, whole_folder, write_json
from refit.artifacts.paths import CHECKED
from refit.params import PARAMS_FILE, Params, load_params
from refit.params.dotted import as_in_yaml
from refit.params.reads import READS, RESOLVED
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import PROJECT, code_of

_SHOWN = 3  # changes shown per stage
_NETWORK = "network.json"  # what `check` itself needs to know when it runs again; no stage depends on it

Checked = Mapping[str, Mapping[str, Any]]
"""`code`: by file the digest of its meaning, by package its version. `params`: the values that the stage reads."""


def write_checked(given: Params, resolved: Mapping[str, object], root: Path = PROJECT) -> list[str]:
    """Write the code and the parameters of each stage but `check`; the keys in RESOLVED have their `resolved` values.
    Returns a line for each stage of which they changed, unless they are those of its last run again. Raises UserError
    as code_of."""
    params = given.replaced(resolved)
    stages = sorted(path.stem for path in (root / "stages").glob("[!_]*.py") if path.stem != "check")
    own = (params.model.system, params.model.network)
    checked = {
        stage: {"code": code_of(stage, own, root, params.data.source), "params": params.values(*READS[stage])}
        for stage in stages
    }
    lines: dict[str, str] = {}
    for stage in stages:
        with suppress(UserError):  # the file does not exist yet, or is damaged
            found = _differences(read_json(_file(stage), "dvc repro check"), checked[stage])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            lines |= {stage: f"{stage}: {', '.join(found[:_SHOWN])}{more}"} if found else {}
    with whole_folder(CHECKED) as folder:
        for stage in stages:
            write_json(folder / _file(stage).name, checked[stage])
        write_json(folder / _NETWORK, {"read": _network_reads(given, root), "resolved": resolved})
    last = _hashes_of_last_runs() if lines else {}
    return [line for stage, line in lines.items() if _md5(_file(stage)) != last.get(stage)]


def passed_before(params: Params, root: Path = PROJECT) -> Mapping[str, object] | None:
    """The resolved values of the keys in RESOLVED, if `check` has last passed with the same code, packages, network,
    loss, augmentation and data; otherwise None. Raises UserError as code_of."""
    reads = _network_reads(params, root)
    with suppress(UserError):  # the file does not exist yet, or is damaged
        last = read_json(CHECKED / _NETWORK, "dvc repro check")
        if last.get("read") == reads:
            resolved: Mapping[str, object] = last["resolved"]
            return resolved
    return None


def _network_reads(params: Params, root: Path) -> dict[str, object]:
    """What the check of the network depends on."""
    sections = ("model", "loss", "augment", "data")
    return {
        "code": code_of("fit", (params.model.system, params.model.network), root),
        "params": params.values(*sections),
    }


def stage_params(stage: str) -> Params:
    """The parameters that `stage` reads, from params.yaml; those in RESOLVED as `check` recorded them.

    Raises UserError if params.yaml is not valid, or was changed since `check` recorded it: DVC would record the outputs
    as those of the earlier values.
    """
    params, changes = _since_checked(load_params(), stage)
    if changes:
        raise UserError(f"{PARAMS_FILE} has changed since it was checked ({', '.join(changes)}); run: dvc repro "
                        f"{stage}, which checks it first")  # fmt: skip
    return params.only(*READS[stage])


def checked_hash(stage: str) -> str | None:
    """A hash of the code, packages and parameters of `stage`; None if `check` has not recorded them."""
    return _md5(_file(stage)) if _file(stage).exists() else None


def changes_since_checked(root: Path) -> list[str]:
    """What differs between params.yaml in `root` and the values that `check` recorded there; nothing if one of the two
    does not exist. Raises UserError if params.yaml is not valid."""
    if not (root / PARAMS_FILE).exists():
        return []
    params = load_params(root / PARAMS_FILE)
    return list(dict.fromkeys(change for stage in READS for change in _since_checked(params, stage, root)[1]))


def _since_checked(params: Params, stage: str, root: Path = Path()) -> tuple[Params, list[str]]:
    """These parameters with the values that `check` resolved for `stage`, and what differs from those that it recorded;
    nothing if it recorded none."""
    file = root / _file(stage)
    if not file.exists():
        return params, []
    recorded = read_json(file, "dvc repro check").get("params", {})
    params = resolved_as(params, stage, recorded)
    return params, _differences({"params": recorded}, {"params": params.values(*READS[stage])})


def resolved_as(params: Params, stage: str, recorded: Mapping[str, Any]) -> Params:
    """The same parameters, with the values that `check` had resolved when it recorded these for `stage`."""
    given = params.values(*READS[stage])
    unresolved = [key for key, value in RESOLVED.items() if given.get(key) == value and key in recorded]
    return params.replaced({key: recorded[key] for key in unresolved})


def _file(stage: str) -> Path:
    return CHECKED / f"{stage}.json"


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _hashes_of_last_runs() -> dict[str, str]:
    """By stage the hash of its file when it last ran, from dvc.lock; empty if that cannot be read."""
    try:
        stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"].items()
        return {
            stage: dep["md5"] for stage, entry in stages for dep in entry["deps"] if dep["path"] == str(_file(stage))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):  # none yet, or one cut short
        return {}


def _differences(before: Checked, now: Checked) -> list[str]:
    """A description of each difference: files, then packages and parameters."""
    if "code" in now and "code" not in before:  # written by an earlier version of Refit
        return []
    changes = []
    for kind in ("code", "params"):
        old, new = before.get(kind, {}), now.get(kind, {})
        for name in sorted(old.keys() | new.keys(), key=lambda name: (not name.endswith(".py"), name)):
            if old.get(name) != new.get(name):
                changes.append(_difference(name, old.get(name), new.get(name), code=kind == "code"))
    return changes


def _difference(name: str, before: Any, now: Any, *, code: bool) -> str:
    if not code:
        return f"{name} {as_in_yaml(before)} -> {as_in_yaml(now)}"
    if before is None:
        return f"{name} is new"
    if now is None:
        return f"{name} is no longer used"
    return f"{name} changed" if name.endswith(".py") else f"{name} {before} -> {now}"
