"""python -m rlm.data: see rlm/data/check.py."""

import sys

from rlm.data.check import main
from rlm.errors import run_main

sys.exit(run_main(main))
