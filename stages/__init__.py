"""The stages of dvc.yaml, one module each."""

import os
import sys

from refit.runtime.parent import die_with_parent
from refit.runtime.warm import run_warm

if sys.argv[0] == "-m":  # this process runs a stage, and has not yet imported what takes seconds
    if sys.argv[1:]:
        print("error: a stage takes no arguments: all choices are in params.yaml; run one with: dvc repro STAGE",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    die_with_parent()
    if "LOCAL_RANK" not in os.environ:  # set in the other processes of a fit, which the first one started
        run_warm()
