"""A data set of three parts -> the examples of a split, and what was found wrong with its rows.

Knows rows, how they become examples, and splits; knows no task. Parts are read when they are first
needed. What is wrong with rows is told of all of them at once; a question with two different golds
is a warning.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from rlm.answers.reading import read_gold
from rlm.data import sources
from rlm.data.layouts import LOOK_AT, Fields, layout_of
from rlm.data.readers import Bad, read_rows
from rlm.data.rows import row_example
from rlm.data.splits import SPLITS, filled, question_key, split_of, without
from rlm.errors import InputError
from rlm.records import Example

logger = logging.getLogger("rlm.data")

Convert = Callable[[dict, str, str], Example]  # row, where, id
Part = Callable[[Bad], Iterable[tuple[str, dict, Convert]]]  # (where, row, how it is converted)
SHOWN = 10  # bad rows of a message
REASON = 110  # characters of the reason of each, where there are several


@dataclass
class DataSet:
    """name: of the data, for messages. parts: split -> its rows. task: what ids begin with.

    examples, places: of each part that was read; places has "path:line" of each example.
    bad: what is wrong with rows, in the order in which they were read. notes: how the data were
    taken, a line each.
    """

    name: str
    task: str
    parts: Mapping[str, Part]
    skip_bad_rows: bool = False
    notes: list[str] = field(default_factory=list)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    bad: list[InputError] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # what was warned of, so that it is once

    def part(self, name: str) -> list[Example]:
        """Return the usable examples of a part, read at the first call; [] if there is no such."""
        if name not in self.examples:
            self.examples[name], self.places[name] = [], []
            rows = self.parts[name](self.bad.append) if name in self.parts else ()
            for number, (where, row, convert) in enumerate(rows, 1):
                try:
                    example = convert(row, where, f"{self.task}-{name}-{number}")
                except InputError as error:
                    self.bad.append(error)
                    continue
                self.examples[name].append(example)
                self.places[name].append(where)
        return self.examples[name]

    @property
    def cut(self) -> list[str]:
        """The held-out splits that have no part of their own: cut from training by hash."""
        return [name for name in SPLITS[1:] if name not in self.parts]

    def split(self, split: str) -> list[Example]:
        """Return the examples of a split.

        validation and test are their own parts where there are such; otherwise they are cut from
        the training part by hash, each with one question at least where there are that many.
        Questions of a held-out part never come back in an earlier split. InputError for bad rows.
        """
        if split in self.parts and split != "train":
            found = self.part(split)
        else:
            whole = self.part("train")
            places = {question_key(e.question): self._place(e.question) for e in whole}
            places = filled(places, self.cut)
            found = [e for e in whole if places[question_key(e.question)] == split]
        kept, dropped = without(found, *map(self.part, SPLITS[SPLITS.index(split) + 1 :]))
        self.check()
        if dropped:
            self._warn(f"{self.task}: {len(dropped)} questions of the {split} split left out, they "
                       "are held out for evaluation too")  # fmt: skip
        return kept

    def _place(self, question: str) -> str:
        """Return the split of a training part's question, if those in `cut` are taken from it.

        Where test has a part of its own, the hash's share for test goes to validation: so whatever
        one data set holds out by hash, another does not train on.
        """
        split = split_of(question)
        return split if split in self.cut or split == "train" else (self.cut or ["train"])[0]

    def check(self) -> None:
        """InputError for bad rows unless they are skipped, which is told; tell contradictions."""
        usable = any(self.examples.values())
        if self.bad and not (self.skip_bad_rows and usable):
            raise bad_rows(self.bad, skipped=self.skip_bad_rows)
        if self.bad:
            self._warn(f"{len(self.bad)} bad rows left out: {listed(self.bad, 3)}")
        found = self.contradictions()
        if found:
            self._warn(f"{len(found)} questions stand twice with golds that differ: "
                       f"{'; '.join(found[:3])}{' ...' * (len(found) > 3)}")  # fmt: skip

    def _warn(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            logger.warning("%s", text)

    def contradictions(self) -> list[str]:
        """Return a line for each question of the parts read that has another gold elsewhere."""
        first: dict[str, tuple[Example, str]] = {}
        found = []
        for name in self.examples:
            for example, where in zip(self.examples[name], self.places[name], strict=True):
                other, place = first.setdefault(question_key(example.question), (example, where))
                if not same_gold(example, other):
                    found.append(f"{place} has {other.gold[:40]!r}, {where} {example.gold[:40]!r}")
        return found


def same_gold(one: Example, other: Example) -> bool:
    """Return whether two examples share a gold: the same text, or the same number."""
    if set(one.golds) & set(other.golds):
        return True
    try:
        values = [{read_gold(gold).value for gold in e.golds} for e in (one, other)]
    except ValueError:
        return False
    return bool(values[0] & values[1])


def bad_rows(errors: list[InputError], *, skipped: bool) -> InputError:
    """Return one error of all bad rows: the first ten, then a count; one alone in full."""
    advice = "no row is left" if skipped else "correct them, or leave them out by --skip-bad-rows"
    if len(errors) == 1:
        return InputError(f"{errors[0]} ({advice.replace('them', 'it')})", longest=2000)
    return InputError(f"{len(errors)} bad rows: {listed(errors, SHOWN)}; {advice}", longest=4000)


def listed(errors: list[InputError], most: int) -> str:
    """Return the first errors, each with its place and shortened, and how many more there are."""
    lines, before = [], ""
    for error in errors[:most]:
        place, _, reason = str(error).partition(": ")
        path, _, number = place.rpartition(":")
        reason = reason.partition(";")[0].partition(": it must")[0]
        shown = reason if len(reason) <= REASON else f"{reason[:REASON]}..."
        lines.append(f"{f'line {number}' if path == before else place}: {shown}")
        before = path
    more = len(errors) - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def open_files(
    data: str,
    task: str,
    *,
    convert: Convert | None = None,
    fields: Fields | None = None,
    kind: str | None = None,
    skip_bad_rows: bool = False,
    held_out: bool = False,
) -> DataSet:
    """Return the data set of a file or folder, each file a part by its name; "train" if none.

    convert: how a row becomes an example; None: by the layout of its file, with `fields`, `kind`.
    held_out: all of it is test, whatever the names say.
    """
    named = sources.split_files(data)
    splits = {file: "test" if held_out else split for file, split in named.items()}
    files: dict[str, list[Path]] = {}
    for file, split in splits.items():
        files.setdefault(split or "train", []).append(file)
    found = DataSet(data, task, {}, skip_bad_rows)
    said: set[str] = set()

    def note(text: str) -> None:
        if text not in said:
            said.add(text)
            found.notes.append(text)
            logger.info("%s: %s", data, text)

    def rows_of(file: Path, bad: Bad) -> Iterator[tuple[str, dict, Convert]]:
        how = convert
        rows = read_rows(file, bad)
        if how is None:
            rows = iter(rows)
            begin = list(islice(rows, LOOK_AT))
            if not begin:
                return
            layout = layout_of([row for _, row in begin], begin[0][0], fields)
            note(layout.in_words())
            rows = chain(begin, rows)

            def how(row: dict, where: str, id: str) -> Example:
                return row_example(row, where, id, layout, kind)

        for where, row in rows:
            yield where, row, how

    def part(files: list[Path]) -> Part:
        return lambda bad: chain.from_iterable(rows_of(file, bad) for file in files)

    found.parts = {split: part(files) for split, files in files.items()}
    if not held_out:
        tell_splits(found, named, note)
    return found


def tell_splits(found: DataSet, named: dict[Path, str | None], note: Callable[[str], None]) -> None:
    """Say how files were taken whose names say a split, or none beside others that do."""
    silent = [file.name for file, split in named.items() if split is None]
    said = [f"{split}: {_several([f.name for f, s in named.items() if s == split])}"
            for split in SPLITS if split in named.values()]  # fmt: skip
    if said:
        note("by their names " + "; ".join(said))
    if silent:
        whole = " and ".join(["train", *found.cut])
        text = (f"{_several(silent)}: no split in the name, so taken as {whole}"
                f"{', cut by hash' if found.cut else ''}")  # fmt: skip
        if said:
            found.notes.append(text)
            logger.warning("%s: %s (name it test* or val* to hold it out)", found.name, text)
        else:
            note(text)


def _several(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def open_parts(name: str, task: str, rows: Mapping[str, Iterable], convert: Convert) -> DataSet:
    """Return the data set whose rows are given by split, all converted alike."""

    def part(rows: Iterable) -> Part:
        return lambda bad: ((where, row, convert) for where, row in rows)

    return DataSet(name, task, {split: part(rows) for split, rows in rows.items()})
