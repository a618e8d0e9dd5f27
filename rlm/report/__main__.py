"""python -m rlm.report: see rlm/report/report.py."""

import sys

from rlm.errors import run_main
from rlm.report.report import main

sys.exit(run_main(main))
