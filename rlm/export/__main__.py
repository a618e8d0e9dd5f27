"""python -m rlm.export: see rlm/export/export.py."""

import sys

from rlm.errors import run_main
from rlm.export.export import main

sys.exit(run_main(main))
