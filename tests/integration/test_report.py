"""Each process writes an identical report."""

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.reports.test_page import write_page


def test_the_report_is_identical_in_any_process_and_with_any_matplotlib_settings(tmp_path: Path) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 30\nsavefig.dpi: 50\naxes.facecolor: red\n")
    pages = []
    for seed in ("1", "2"):
        page = tmp_path / f"{seed}.html"
        environment = {**os.environ, "PYTHONHASHSEED": seed} | ({"MATPLOTLIBRC": str(settings)} if seed == "2" else {})
        imports = "from pathlib import Path; from tests.unit.reports.test_page import write_page"
        code = f"{imports}; write_page(Path({str(page)!r}))"
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=300)
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    assert pages[0] == write_page(tmp_path / "here.html")
