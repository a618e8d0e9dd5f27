"""python -m rlm.tiny: see rlm/tiny/base.py."""

import sys

from rlm.errors import run_main
from rlm.tiny.base import main

sys.exit(run_main(main))
