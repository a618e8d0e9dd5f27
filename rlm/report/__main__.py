"""python -m rlm.report: see rlm/report/report.py."""

import sys

from rlm.errors import run
from rlm.report.report import main

sys.exit(run(main))
