"""The short form of `python -m benchmarks.kill_test`: kills at random moments, drawn with a fixed seed."""

import re
import subprocess
import sys

from tests.flows.toy import PROJECT


def test_a_run_killed_at_random_moments_ends_with_the_dvc_lock_of_an_undisturbed_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_test", "--rounds", "1", "--seed", "2", "--kills", "2",
         "--set", "fit.max_epochs=6", "--set", "tracking.loggers=[]"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (kills,) = re.findall(r"^round 1: (\d+) kills(?:, repaired .*)?, dvc.lock the same$", done.stdout, re.MULTILINE)
    assert int(kills) >= 1
