"""Lightning's profilers. Their reports hold times, so they go to the logs and into no output."""

from typing import Literal

from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from refit.artifacts.paths import PROFILES, repository_root

LINES_SHOWN = 40

Name = Literal["simple", "advanced", "pytorch"]
_PROFILERS: dict[Name, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def make_profiler(name: Name | None) -> Profiler | None:
    return _PROFILERS[name](dirpath=repository_root() / PROFILES / name, filename="profile") if name else None


def show_profile(name: Name) -> None:
    """Print the first lines of the profiler's report and the path of the file."""
    for report in sorted((repository_root() / PROFILES / name).glob("*.txt")):
        lines = report.read_text(encoding="utf-8").splitlines()
        print("\n".join(lines[:LINES_SHOWN]))
        print(f"profile: {report.relative_to(repository_root())}, {len(lines)} lines", flush=True)
