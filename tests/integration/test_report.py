"""Each process writes an identical report."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE
from tests.unit.reports.test_page import write_page


def test_the_report_is_identical_in_any_process_and_with_any_matplotlib_settings(tmp_path: Path) -> None:
    """Another process, and this one: Python orders sets by another seed in each."""
    settings, page = tmp_path / "matplotlibrc", tmp_path / "there.html"
    settings.write_text("font.size: 30\nsavefig.dpi: 50\naxes.facecolor: red\n")
    imports = "from pathlib import Path; from tests.unit.reports.test_page import write_page"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", f"{imports}; write_page(Path({str(page)!r}))"], cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": seed, "MATPLOTLIBRC": str(settings)}, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert page.read_bytes() == write_page(tmp_path / "here.html")
