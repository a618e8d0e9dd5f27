"""How the shipped weights are made, and what their recipes share on the command line."""

import argparse
from dataclasses import asdict


def recipe_parser(module: str, description: str | None, defaults) -> argparse.ArgumentParser:
    """Return a parser with a flag for each field of a dataclass, whose values are the defaults.

    module: what is run, by `python -m`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    return parser
