"""OpenMathInstruct-1 and -2: right solutions as plain reasoning, the program code taken out.

Rows of nvidia/OpenMathInstruct-1 (arXiv:2402.10176): question, generated_solution,
expected_answer, is_correct. A solution mixes prose with <llm-code> blocks and what they printed
(<llm-code-output>) and states its answer in a \\boxed{}. Rows of nvidia/OpenMathInstruct-2
(arXiv:2410.01560): problem, generated_solution, expected_answer, without code, all taken as right.
"""

import heapq
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from rlm.answers.reading import read_gold
from rlm.data import sources
from rlm.data.bad_rows import check_bad_rows
from rlm.data.dataset import check_mathematics
from rlm.data.layouts import Reading
from rlm.data.readers import read_rows
from rlm.data.rows import field as field_of
from rlm.data.splits import SPLITS, place_of, question_key
from rlm.errors import InputError
from rlm.records import Example
from rlm.seeds import derive

CODE = re.compile(r"<llm-code>.*?</llm-code>\s*", re.DOTALL)
OUTPUT = re.compile(r"<llm-code-output>(.*?)</llm-code-output>", re.DOTALL)
BROKEN_OUTPUT = re.compile(r"error|traceback|timeout|exception", re.I)
# Prose that announces or explains the program, which is not there any more.
ABOUT_CODE = re.compile(r"\b(code|python|sympy|program|script|librar|execut|function)", re.I)
NAMES_ANSWER = re.compile(r"\banswer\b", re.I)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OUTPUT_CHARACTERS = 40  # what a program printed is kept up to this length
PROSE_CHARACTERS = 40  # less than this is no reasoning
MOST_BLOCKS = 100  # more are none; each that is not closed is looked for to the end of the text

logger = logging.getLogger("rlm.data")


@dataclass(frozen=True)
class Version:
    """name: on the hub. question: its column. judged: a column says whether a solution is right."""

    name: str
    question: str
    judged: bool


VERSIONS = {
    "openmath": Version("nvidia/OpenMathInstruct-1", "question", judged=True),
    "openmath2": Version("nvidia/OpenMathInstruct-2", "problem", judged=False),
}


@dataclass
class Wanted:
    """What is looked for: usable solutions of a split's questions, so many of each.

    kind: number takes questions with a number for an answer alone. cut: held-out splits that are
    cut from training by hash. held_out: questions of files that are held out, which training must
    not see. best: question -> heap of (-rank, example), the worst first.
    """

    version: Version
    split: str
    seed: int = 0
    per_question: int = 1
    kind: str | None = None
    cut: tuple[str, ...] = SPLITS[1:]
    held_out: set[str] = field(default_factory=set)
    best: dict[str, list] = field(default_factory=dict)


def collect(
    task: str, wanted: Wanted, data: str | None, n: int | None, reading: Reading
) -> list[Example]:
    """Return the wanted number of usable solutions of each question of the split.

    From files (`data`) all are looked at, and those without code come first; a file is of the
    split that its name says. The hub's millions of rows stream by only until n are found: then it
    is the first usable ones that are taken. InputError for rows without their fields.
    """
    if wanted.per_question < 1:
        raise InputError(
            f"per_question {wanted.per_question}: use 1 or more solutions of each question"
        )
    bad: list[InputError] = []
    seen: Counter = Counter()
    for where, row, own in _rows(data, wanted, bad):
        try:
            seen[take(row, where, wanted, own)] += 1
        except InputError as error:
            bad.append(error)
        if n and seen["taken"] >= n and not data:
            break
    check_bad_rows(
        bad,
        usable=bool(seen),
        skip=reading.skip_bad_rows,
        warn=partial(logger.warning, "%s: %s", task),
    )
    text = ", ".join(f"{number} {what}" for what, number in seen.most_common())
    logger.info("%s: %d rows read: %s", task, seen.total(), text or "none")
    found = [e for heap in wanted.best.values() for _, e in sorted(heap, key=lambda x: -x[0])]
    try:
        wrong = check_mathematics(found)
    except InputError as error:
        raise InputError(f"{error}; or use --answers number, which leaves them out") from None
    found = [example for place, example in enumerate(found) if place not in wrong]
    if wrong:
        logger.info("%s: %d with an answer that cannot be judged, left out", task, len(wrong))
    return [replace(e, id=f"{task}-{wanted.split}-{number}") for number, e in enumerate(found, 1)]


def _rows(
    data: str | None, wanted: Wanted, bad: list[InputError]
) -> Iterator[tuple[str, dict, str]]:
    """Yield (where, row, split of its file) of what may have rows of the wanted split."""
    if not data:
        rows = sources.hub_rows(wanted.version.name, "train", streaming=True)
        yield from ((where, row, "train") for where, row in rows)
        return
    named = {file: own or "train" for file, own in sources.split_files(data).items()}
    wanted.cut = tuple(name for name in SPLITS[1:] if name not in named.values())
    later = SPLITS[SPLITS.index(wanted.split) + 1 :]
    for file in (file for file, own in named.items() if own in later):
        questions = (row.get(wanted.version.question) for _, row in read_rows(file, bad.append))
        wanted.held_out |= {question_key(q) for q in questions if isinstance(q, str)}
    whole = wanted.split if wanted.split in named.values() else "train"
    for file in (file for file, own in named.items() if own == whole):
        yield from ((where, row, whole) for where, row in read_rows(file, bad.append))


def take(row: dict, where: str, wanted: Wanted, own: str = "train") -> str:
    """Put a row's solution into `best` if it is among the best of its question; say what was done.

    own: the split of its file; what a training file has is cut by hash. InputError if a field is
    missing or no text.
    """
    version = wanted.version
    if version.judged and not isinstance(row.get("is_correct"), bool):
        raise InputError(f"{where}: field 'is_correct' must be true or false, as openmath has it")
    if version.judged and not row["is_correct"]:
        return "wrong"
    question = field_of(row, version.question, where)
    place = place_of(question, wanted.cut) if own == "train" else own
    if place != wanted.split:
        return "of another split"
    if question_key(question) in wanted.held_out:
        return "held out for evaluation too"
    text = field_of(row, "generated_solution", where)
    gold = field_of(row, "expected_answer", where, number=True)
    # Smaller is better: no code before code, then by hash.
    rank = ("<llm-code>" in text) * 2**63 + derive(wanted.seed, text)
    heap = wanted.best.setdefault(question_key(question), [])
    if any(rank == -worst for worst, _ in heap):
        return "repeated"
    if len(heap) == wanted.per_question and rank > -heap[0][0]:
        return "more than wanted"
    kind = kind_of_gold(gold, wanted.kind)
    if kind is None:
        return "with an answer that is no number"
    solution = plain_reasoning(text)
    if solution is None:
        return "without reasoning beside the code"
    entry = (-rank, Example("", question, gold, solution, kind=kind))
    if len(heap) == wanted.per_question:
        heapq.heapreplace(heap, entry)
        return "better than an earlier one"
    heapq.heappush(heap, entry)
    return "taken"


def kind_of_gold(gold: str, kind: str | None) -> str | None:
    """Return number for a gold that is one, else math; None where numbers alone are wanted."""
    try:
        read_gold(gold)
    except ValueError:
        return None if kind == "number" else "math"
    return "number"


def plain_reasoning(solution: str) -> str | None:
    r"""Return a solution as plain reasoning; None if nothing of the kind is left.

    Code goes, and the sentences about it; what it printed stays as "This gives 42." where that
    is short; the box around the answer goes, and a last line that only states the answer.
    None: code that failed or is not closed, or no step of reasoning beside the code.

    >>> plain_reasoning(r"There are 3 boxes of 5 pens each, that is 3 * 5 = \boxed{15} pens.")
    'There are 3 boxes of 5 pens each, that is 3 * 5 = 15 pens.'
    >>> plain_reasoning("Let us use Python.\n<llm-code>\n1 + 2\n</llm-code>\n\\boxed{3}")
    """
    if solution.count("<llm-code") > MOST_BLOCKS:
        return None
    outputs = OUTPUT.findall(solution)
    text = unbox(OUTPUT.sub(_output_sentence, CODE.sub("\n", solution)))
    if text is None or "llm-code" in text or any(map(BROKEN_OUTPUT.search, outputs)):
        return None
    printed = {f"This gives {output.strip()}." for output in outputs}
    has_code = "<llm-code>" in solution
    lines, prose = [], []
    for line in text.splitlines():
        sentences = [s for s in re.split(r"(?<=[.!?:])\s+", line.strip()) if s]
        if has_code:
            sentences = [s for s in sentences if s in printed or not ABOUT_CODE.search(s)]
        lines.append(" ".join(sentences))
        prose += [s for s in sentences if s not in printed]
    while lines and (not lines[-1] or _states_answer(lines[-1])):
        lines.pop()
    # Two numbers at least, answer sentences apart: else nothing is worked out.
    numbers = {n for s in prose if not NAMES_ANSWER.search(s) for n in NUMBER.findall(s)}
    if len(" ".join(prose)) < PROSE_CHARACTERS or len(numbers) < 2:
        return None
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() or None


def _output_sentence(match: re.Match) -> str:
    output = match[1].strip()
    short = output and len(output) <= OUTPUT_CHARACTERS and "\n" not in output
    return f"This gives {output}.\n" if short else "\n"


def _states_answer(line: str) -> bool:
    """Whether a line says nothing but the answer: "The answer is 5.", "$5$"."""
    bare = line.strip(" $.\\[]()")
    return bool(NUMBER.fullmatch(bare)) or (bool(NAMES_ANSWER.search(line)) and "=" not in line)


def unbox(text: str) -> str | None:
    r"""Return the text with each \boxed{X} replaced by X; None if a box is not closed."""
    box, out, at = "\\boxed{", [], 0
    while (start := text.find(box, at)) >= 0:
        out.append(text[at:start])
        depth, at = 1, start + len(box)
        inside = at
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if depth:
            return None
        out.append(text[inside : at - 1])
    return "".join(out) + text[at:]
