"""Runs a script and ends the process, without any clean-up, at its n-th write to the disk.

    python tests/support/dying.py 17 train_grpo.py --run a

Counted are the moments around a save: each fsync, rename and replace. The n-th never happens.
"""

import os
import runpy
import sys

count = int(sys.argv[1])


def deadly(function):
    def called(*arguments, **options):
        global count
        count -= 1
        if count < 0:
            os._exit(137)
        return function(*arguments, **options)

    return called


for name in ("fsync", "rename", "replace"):
    setattr(os, name, deadly(getattr(os, name)))
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
