"""A data set of three parts -> the examples of a split, and what was found wrong with its rows.

Knows rows, how they become examples, and splits; knows no task. Parts are read when they are first
needed. What is wrong with rows is told of all of them at once; a question with two different golds
is a warning.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from rlm.answers.kinds import check_golds
from rlm.answers.reading import read_gold
from rlm.data import sources
from rlm.data.bad_rows import check_bad_rows
from rlm.data.hub_sets import HUB_SETS, HubSet
from rlm.data.layouts import LOOK_AT, Reading, layout_of
from rlm.data.readers import Bad, Row, read_rows
from rlm.data.rows import gsm8k_example, row_example
from rlm.data.splits import SPLITS, filled, place_of, question_key, without
from rlm.errors import InputError
from rlm.records import Example

logger = logging.getLogger("rlm.data")

Convert = Callable[[dict, str, str], Example]  # row, where, id
Part = Callable[[Bad], Iterable[tuple[str, dict, Convert]]]  # (where, row, how it is converted)
READING = Reading()  # nothing is named by the user


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

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Keep and log a line on how the data were taken, once."""
        if text not in self.notes:
            self.notes.append(text)
            logger.log(level, "%s: %s", self.name, text)

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
            self._check_mathematics(name)
        return self.examples[name]

    def _check_mathematics(self, name: str) -> None:
        """Take out of a part the examples of kind math whose golds cannot be read, as bad rows."""
        wrong = check_mathematics(self.examples[name])
        places = self.places[name]
        self.bad += [InputError(f"{places[i]}: {reason}") for i, reason in wrong.items()]
        kept = [i for i in range(len(places)) if i not in wrong]
        self.examples[name] = [self.examples[name][i] for i in kept]
        self.places[name] = [places[i] for i in kept]

    @property
    def cut(self) -> list[str]:
        """The held-out splits that have no part of their own: cut from training by hash."""
        return [name for name in SPLITS[1:] if name not in self.parts]

    def split(self, split: str) -> list[Example]:
        """Return the examples of a split; InputError for bad rows.

        validation and test are their own parts where there are such; otherwise they are cut from
        the training part by hash, each with one question at least where there are that many.
        Questions of a held-out part never come back in an earlier split.
        """
        kept, dropped = self.kept(split)
        self.check()
        if dropped:
            self._warn(f"{self.task}: {len(dropped)} questions of the {split} split left out, they "
                       "are held out for evaluation too")  # fmt: skip
        return kept

    def kept(self, split: str) -> tuple[list[Example], list[Example]]:
        """Return (the examples of a split, those left out of it), whatever is wrong with rows."""
        if split in self.parts and split != "train":
            found = self.part(split)
        else:
            whole = self.part("train")
            places = {question_key(e.question): place_of(e.question, self.cut) for e in whole}
            places = filled(places, self.cut)
            found = [e for e in whole if places[question_key(e.question)] == split]
        return without(found, *map(self.part, SPLITS[SPLITS.index(split) + 1 :]))

    def check(self) -> None:
        """InputError for bad rows unless they are skipped, which is told; tell contradictions."""
        usable = any(self.examples.values())
        check_bad_rows(self.bad, usable=usable, skip=self.skip_bad_rows, warn=self._warn)
        found = self.contradictions()
        if found:
            self._warn(
                f"the same question with golds that differ, {len(found)} times: "
                f"{'; '.join(found[:3])}{' ...' * (len(found) > 3)}"
            )

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


def check_mathematics(examples: Sequence[Example]) -> dict[int, str]:
    """Return place in the list -> what is wrong, of the examples of kind math with a bad gold.

    Each gold is judged against itself, all of them at once. InputError without Math-Verify.
    """
    asked = [(i, gold) for i, e in enumerate(examples) if e.kind == "math" for gold in e.golds]
    found = check_golds("math", [gold for _, gold in asked]) if asked else []
    return {i: str(error) for (i, _), error in zip(asked, found, strict=True)
            if isinstance(error, ValueError)}  # fmt: skip


def same_gold(one: Example, other: Example) -> bool:
    """Return whether two examples share a gold: the same text, or the same number."""
    if set(one.golds) & set(other.golds):
        return True
    try:
        values = [{read_gold(gold).value for gold in e.golds} for e in (one, other)]
    except ValueError:
        return False
    return bool(values[0] & values[1])


def open_data(task: str, data: str | None, reading: Reading = READING) -> DataSet:
    """Return the data set of a task that has one: its files, or the hub's; read when needed.

    A task that is no known data set is read from files by their columns.
    """
    known = HUB_SETS.get(task)
    if known is None:
        return open_files(data or "", task, reading=reading)
    reading = replace(reading, kind=reading.kind or known.kind)
    as_there = task == "gsm8k" and reading.kind == known.kind and not reading.flags()
    convert = partial(gsm8k_example, notes=reading.notes) if as_there else None
    if data:
        return open_files(data, task, convert, reading, held_out=known.held_out)
    return open_hub(known, task, convert, reading)


def open_files(
    data: str,
    task: str,
    convert: Convert | None = None,
    reading: Reading = READING,
    *,
    held_out: bool = False,
) -> DataSet:
    """Return the data set of a file or folder, each file a part by its name; "train" if none.

    convert: how a row becomes an example; None: by the layout of its file and `reading`.
    held_out: all of it is test, whatever the names say.
    """
    named = sources.split_files(data)
    files: dict[str, list[Path]] = {}
    for file, split in named.items():
        files.setdefault("test" if held_out else split or "train", []).append(file)
    found = DataSet(data, task, {}, reading.skip_bad_rows)

    def part(files: list[Path]) -> Part:
        def rows(bad: Bad) -> Iterator[tuple[str, dict, Convert]]:
            for file in files:
                yield from converted(read_rows(file, bad), convert, found.note, reading)

        return rows

    found.parts = {split: part(of) for split, of in files.items()}
    if not held_out:
        tell_splits(found, named)
    return found


def converted(
    rows: Iterator[Row], convert: Convert | None, note: Callable[[str], None], reading: Reading
) -> Iterator[tuple[str, dict, Convert]]:
    """Yield (where, row, how it is converted); without `convert` by the layout of the first rows.

    note: is told the layout.
    """
    if convert is None:
        begin = list(islice(rows, LOOK_AT))
        if not begin:
            return
        layout = layout_of([row for _, row in begin], begin[0][0], reading)
        note(layout.in_words())
        convert = partial(row_example, layout=layout, kind=reading.kind)
        rows = chain(begin, rows)
    for where, row in rows:
        yield where, row, convert


def tell_splits(found: DataSet, named: dict[Path, str | None]) -> None:
    """Say how files were taken whose names say a split, or none beside others that do."""
    silent = [file.name for file, split in named.items() if split is None]
    said = [f"{split}: {_several([f.name for f, s in named.items() if s == split])}"
            for split in SPLITS if split in named.values()]  # fmt: skip
    if said:
        found.note("by their names " + "; ".join(said))
    if silent:
        splits = ["train", *found.cut]
        whole = " and ".join(filter(None, [", ".join(splits[:-1]), splits[-1]]))
        who = f"{_several(silent)}: no split in the name" if len(named) > 1 else (
            "no split in its name"
        )  # fmt: skip
        text = f"{who}, so taken as {whole}{', cut by hash' if found.cut else ''}"
        advice = " (name it test* or val* to hold it out)" if said else ""
        found.note(text + advice, logging.WARNING if said else logging.INFO)


def _several(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def open_hub(known: HubSet, task: str, convert: Convert | None, reading: Reading) -> DataSet:
    """Return the data set on the hub; its rows come when a part is first needed.

    convert, reading: as `open_files` has them.
    """
    found = DataSet(known.name, task, {}, reading.skip_bad_rows)

    def part(split: str) -> Part:
        def rows(bad: Bad) -> Iterator[tuple[str, dict, Convert]]:
            raw = sources.hub_rows(known.name, split, config=known.config)
            return converted(raw, convert, found.note, reading)

        return rows

    found.parts = {split: part(there) for split, there in known.splits.items()}
    return found
