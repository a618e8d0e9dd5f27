"""The command line of a settings class: its flags, its help, what is wrong with them."""

import argparse
from typing import Any, Literal, get_args, get_origin

from rlm.cli.layers import Settings, describe, extra_of, flag_of, nearest, plain_type
from rlm.errors import InputError


class _Keep(argparse.Action):
    """Keeps (flag as typed, value); a switch is its own opposite with `--no-` in front.

    A flag of several values that is given again adds to them.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        if self.nargs == 0:
            values = not option_string.startswith("--no-")
        elif self.nargs == "+":
            values = [*getattr(namespace, self.dest, ("", []))[1], *values]
        setattr(namespace, self.dest, (option_string or "", values))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        place, _, rest = message.removeprefix("argument ").partition(": ")
        missing = rest.startswith("expected")
        raise InputError(f"{place}: {'a value is missing' if missing else rest}; see --help")


def _switch(flag: str) -> list[str]:
    return [flag, "--no-" + flag.removeprefix("--")]


def make_parser(cls: type[Settings], program: str) -> argparse.ArgumentParser:
    """The parser of a class's flags, in the sections that its fields open."""
    parser = _Parser(
        prog=program,
        description=cls.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Order: defaults < --config file < environment RLM_GROUP_SIZE=8 < flags.",
    )
    title = "Common"
    groups: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        extra = extra_of(field)
        title = extra["section"] or title
        if not extra["flag"]:
            continue
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        text, kind = describe(field).replace("%", "%%"), plain_type(field)
        if extra["flag"] == "positional":
            group.add_argument(name, nargs="?", action=_Keep, help=text)
            continue
        names = [flag_of(name), *extra["flags"]]
        if kind is bool:
            names = [n for flag in names for n in _switch(flag)]
            group.add_argument(*names, dest=name, action=_Keep, nargs=0, help=text)
            continue
        choices = get_origin(kind) is Literal
        group.add_argument(
            *names,
            dest=name,
            action=_Keep,
            nargs="+" if get_origin(kind) is list else None,
            metavar="|".join(get_args(kind)) if choices else _metavar(name, kind),
            help=text,
        )
    return parser


def _metavar(name: str, kind: Any) -> str:
    return {int: "N", float: "X"}.get(kind, name.rpartition("_")[2].upper())


def read_flags(cls: type[Settings], argv: list[str], program: str) -> tuple[dict, dict]:
    """(values, origins) of the flags in `argv`. Raises InputError for an unknown one."""
    parser = make_parser(cls, program)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings]
        if word.startswith("-"):
            raise InputError(f"{word}: unknown flag{nearest(word, known) or '; see --help'}")
        raise InputError(f"{word!r}: one word too many; put a text with spaces in quotes")
    values, origins = {}, {}
    for name, (flag, value) in vars(found).items():
        values[name] = value
        words = [] if isinstance(value, bool) else value if isinstance(value, list) else [value]
        words = [word if word.isprintable() and word else repr(word) for word in words]
        origins[name] = " ".join([flag or name, *words])
    return values, origins
