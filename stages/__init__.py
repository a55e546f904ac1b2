"""The stages of dvc.yaml, one module each."""

import os
import sys

from refit.runtime.parent import die_with_parent
from refit.runtime.warm import run_warm

if sys.argv[0] == "-m":  # as a stage's process, which imports this before all that takes seconds
    if sys.argv[1:]:
        print("error: a stage takes no arguments: every choice is in params.yaml; run one with: dvc repro STAGE",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    die_with_parent()
    if "LOCAL_RANK" not in os.environ:  # else it is one of the processes of a fit, which its first has started
        run_warm()
