"""python -m rlm.export: see rlm/export/export.py."""

import sys

from rlm.errors import run
from rlm.export.export import main

sys.exit(run(main))
