"""What is wrong with the rows of a data set, told at once: an error, or what was left out.

Knows the errors alone, which begin with "path:line: ".
"""

from collections.abc import Callable

from rlm.errors import InputError

SHOWN = 10  # bad rows of a message
LEFT_OUT = 3  # of a warning
REASON = 110  # characters of the reason of each, where there are several


def check_bad_rows(
    bad: list[InputError], *, usable: bool, skip: bool, warn: Callable[[str], None]
) -> None:
    """InputError for bad rows; where they are to be skipped and others are `usable`, a warning."""
    if bad and not (skip and usable):
        raise bad_rows(bad, skipped=skip)
    if bad:
        warn(f"{len(bad)} bad rows left out: {listed(bad, LEFT_OUT)}")


def bad_rows(errors: list[InputError], *, skipped: bool) -> InputError:
    """Return one error of all bad rows: the first ten, then a count; one alone in full."""
    one = len(errors) == 1
    advice = "no row is left" if skipped else (
        f"correct {'it' if one else 'them'}, or go on without by --skip-bad-rows"
    )  # fmt: skip
    if one:
        return InputError(f"{errors[0]} ({advice})", longest=2000)
    return InputError(f"{len(errors)} bad rows: {listed(errors, SHOWN)}; {advice}", longest=4000)


def listed(errors: list[InputError], most: int) -> str:
    """Return the first errors, each with its place and shortened, and how many more there are."""
    lines, before = [], ""
    for error in in_order(errors)[:most]:
        place, _, reason = one_line(error).partition(": ")
        path, number = path_and_number(place)
        lines.append(f"{number if number and path == before else place}: {reason}")
        before = path
    more = len(errors) - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def in_order(errors: list[InputError]) -> list[InputError]:
    """Return the errors by file, in the order in which these were read, and there by line."""
    places = [path_and_number(str(error).partition(": ")[0]) for error in errors]
    files = {path: i for i, path in enumerate(dict.fromkeys(path for path, _ in places))}
    keys = [(files[path], int(number or 0)) for path, number in places]
    return [errors[i] for i in sorted(range(len(errors)), key=keys.__getitem__)]


def path_and_number(place: str) -> tuple[str, str]:
    """Return ("path", "3") of "path:3", the whole and "" where no number ends it."""
    path, _, number = place.rpartition(":")
    return (path, number) if number.isdecimal() and number.isascii() else (place, "")


def one_line(error: InputError) -> str:
    """Return the place and the reason, without the advice that one error alone has."""
    place, _, reason = str(error).partition(": ")
    reason = reason.partition(";")[0].partition(": it must")[0]
    return f"{place}: {reason if len(reason) <= REASON else reason[:REASON] + '...'}"
