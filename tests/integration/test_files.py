"""A reader of a file whose writer is killed."""

import subprocess
import sys
from pathlib import Path

from tests.processes import eventually

ROOT = Path(__file__).resolve().parents[2]
_REWRITE_FOREVER = """
import sys
from itertools import cycle
from pathlib import Path
from refit.artifacts.files import write_bytes

for letter in cycle(b"ab"):
    write_bytes(Path(sys.argv[1]), bytes([letter]) * 2**20)
"""


def test_a_reader_never_sees_half_a_file_even_if_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", _REWRITE_FOREVER, str(path)], cwd=ROOT) as writer:
        eventually(path.exists, "it is written", every=0.01)
        seen = [path.read_bytes() for _ in range(100)]
        writer.kill()
    seen.append(path.read_bytes())
    assert {content for content in seen if content not in (b"a" * 2**20, b"b" * 2**20)} == set()
