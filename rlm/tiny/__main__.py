"""python -m rlm.tiny: see rlm/tiny/base.py."""

import sys

from rlm.errors import run
from rlm.tiny.base import main

sys.exit(run(main))
