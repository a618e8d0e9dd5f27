"""Says what would be done with a data set: columns, rows, splits, what is wrong. Trains nothing.

    python -m rlm.data check mine.csv
    python -m rlm.data check FOLDER --model weights/tiny_base
    python -m rlm.data check mine.jsonl --answer-field gold.value --skip-bad-rows

Exit code 0 if the data can be used as they are, 2 if not: a row that cannot be used (unless it is
to be skipped), no question, no column. Lengths are those of the texts; the instruction and the
chat template come on top.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rlm.answers.formats import TRAINABLE, get_format, render
from rlm.data.bad_rows import SHOWN, in_order, one_line
from rlm.data.dataset import DataSet, open_data
from rlm.data.hub_sets import HUB_SETS
from rlm.data.layouts import Reading
from rlm.data.splits import SPLITS, question_key
from rlm.errors import InputError
from rlm.records import Example

Count = Callable[[str], int]  # tokens of a text


class Parser(argparse.ArgumentParser):
    """Tells wrong input in one line, as the scripts do."""

    def error(self, message: str):
        raise InputError(f"{message}; see python -m rlm.data --help")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rlm.data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("do", choices=["check"], help="what is done")
    parser.add_argument("data", nargs="?", help="file or folder; without it the task's on the hub")
    parser.add_argument("--task", default="jsonl", choices=["jsonl", *HUB_SETS],
                        help="which data set it is (default jsonl: your own)")  # fmt: skip
    parser.add_argument("--question-field", help="column of the question; a.b for b inside of a")
    parser.add_argument("--answer-field", help="column of the right answer")
    parser.add_argument("--solution-field", help="column of the reasoning")
    parser.add_argument("--answers", help="kind of the answers (default the task's)")
    parser.add_argument("--skip-bad-rows", action="store_true", help="bad rows are left out")
    parser.add_argument("--model", help="folder or hub's name whose tokenizer counts the lengths")
    parser.add_argument("--format", default="think", choices=TRAINABLE,
                        help="tags around reasoning and answer, for the lengths")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    if not given.data and given.task == "jsonl":
        raise InputError("check: needs a file or folder, or --task with a data set of the hub")
    count = tokenizer_of(given.model) if given.model else None
    reading = Reading(
        question=given.question_field,
        answer=given.answer_field,
        solution=given.solution_field,
        kind=given.answers,
        skip_bad_rows=given.skip_bad_rows,
    )
    with silent(logging.getLogger("rlm.data")):
        opened = open_data(given.task, given.data, reading)
        lines, usable = report(opened, count, given.format)
    print(opened.name)
    width = max(len(head) for head, _ in lines)
    for head, text in lines:
        print(f"  {head:<{width}}  {text}".rstrip())
    return 0 if usable and (reading.skip_bad_rows or not opened.bad) else 2


@contextmanager
def silent(logger: logging.Logger) -> Iterator[None]:
    """Keep what a logger notes to itself: the report has it."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def report(opened: DataSet, count: Count | None, format_name: str) -> tuple[list, bool]:
    """Return (lines of a heading and a text, whether there is a question at all)."""
    kept = {split: opened.kept(split) for split in SPLITS}
    examples = [e for part in opened.examples.values() for e in part]
    lines = [("taken", note) for note in opened.notes]
    lines.append(("rows", f"{len(examples)} usable, {len(opened.bad)} bad"))
    kinds = Counter(e.kind for e in examples)
    lines += [("kinds", ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()))] * bool(kinds)
    solved = sum(e.solution is not None for e in examples)
    lines.append(("solutions", f"{solved} of {len(examples)}; SFT learns from these alone"))
    sizes = [f"{split} {len(found)}" for split, (found, _) in kept.items()]
    lines.append(("splits", ", ".join(sizes)))
    lines += [("held out", held_out(opened))]
    for split, (_, dropped) in kept.items():
        if dropped:
            lines.append(("left out", f"{len(dropped)} of {split}: a later split has the question, "
                          f"the first is {dropped[0].id}"))  # fmt: skip
    repeated = len(examples) - len({question_key(e.question) for e in examples})
    lines += [("repeated", f"questions that stand there before: {repeated}")] * bool(repeated)
    lines += limited("contradiction", opened.contradictions())
    lines += limited("bad row", [one_line(error) for error in in_order(opened.bad)])
    if count and examples:
        lines += lengths(examples, count, format_name)
    return merged(lines), bool(examples)


def held_out(opened: DataSet) -> str:
    """Return in words what training never sees."""
    own = [split for split in SPLITS[1:] if split in opened.parts]
    parts = [f"{split} by its files" for split in own] if own else []
    parts += [f"{split} by a hash of the question" for split in opened.cut]
    return ", ".join(parts)


def limited(head: str, texts: list[str]) -> list[tuple[str, str]]:
    """Return the first lines of many, and how many more there are."""
    more = len(texts) - SHOWN
    shown = [(head, text) for text in texts[:SHOWN]]
    return shown + ([(head, f"and {more} more")] if more > 0 else [])


def merged(lines: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the lines with each heading at its first one only."""
    found: list[tuple[str, str]] = []
    last = None
    for head, text in lines:
        found.append(("" if head == last else head, text))
        last = head
    return found


def lengths(examples: list[Example], count: Count, format_name: str) -> list[tuple[str, str]]:
    """Return the lengths in tokens of questions, and of demonstrations where there are some."""
    form = get_format(format_name)
    turns = [render(form, e.solution, e.gold) for e in examples if e.solution is not None]
    texts = {"question": [e.question for e in examples], f"{format_name} turn": turns}
    return [
        ("tokens", f"{name}: {spread([count(t) for t in of])}") for name, of in texts.items() if of
    ]


def spread(numbers: list[int]) -> str:
    """Return median, 95th percentile and maximum in words.

    >>> spread(list(range(1, 101)))
    'median 50, 95 % up to 95, longest 100'
    """
    ordered = sorted(numbers)
    middle, high = ordered[(len(ordered) - 1) // 2], ordered[-(-len(ordered) * 95 // 100) - 1]
    return f"median {middle}, 95 % up to {high}, longest {ordered[-1]}"


def tokenizer_of(model: str) -> Count:
    """Return what counts a text's tokens; InputError if the model has no tokenizer here."""
    from rlm.data import hub

    offline = bool(hub.offline_switch()) or not hub.reachable()
    from transformers import AutoTokenizer
    from transformers.utils import logging as quiet

    quiet.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=offline)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--model {model}: its tokenizer cannot be loaded ({reason}); give a model's folder, "
            "or a name of the hub that is in the cache or can be reached"
        ) from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
