"""What a benchmark says of the machine that it ran on."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor's name as Linux has it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []  # fmt: skip
    return names[0] if names else platform.processor()
