"""A process of our own that is spoken to in lines of JSON, and may hang or die at any time.

Who runs it sends a line at a time, reads its standard output as it likes, and ends it. No signal
and no thread is used on this side.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class LineProcess:
    """A Python script in a process. It imports nothing that lies beside it (-P).

    words: its command line. env: its whole environment, None for ours. What it says on standard
    error goes to nobody.
    """

    def __init__(self, script: Path, *words: str, env: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )

    def send(self, message: dict) -> None:
        """Send one line; that it has died by now is seen when its answer is read."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what could not be written any more
                if pipe:
                    pipe.close()
