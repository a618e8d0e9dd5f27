"""A sample of rollouts.jsonl that fits into a page: some questions across the steps, some steps.

The file is read twice and never held: first where each group of completions stands, then the
chosen ones. A line that cannot be read (the last one of a run that was killed) is left out.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rlm.seeds import derive

BUDGET_BYTES = 2_500_000  # of the file's lines that are taken
STEPS_OF_A_QUESTION = 12
TEXT = 20_000  # characters of a text that are kept
KEPT = ("text", "tokens", "finish", "reward", "parts", "reason", "advantage", "token_lengths",
        "logprobs", "calls", "agents", "graph")  # fmt: skip

Group = tuple[float, str]  # a step, a question's id


def sample(path: Path, budget: int = BUDGET_BYTES, end: float = math.inf) -> dict:
    """Return {"total", "shown", "questions"}: counts of completions, and those that are shown.

    A question is {"id", "question", "gold", "steps": [{"step", "completions": [...]}]}. The same
    file gives the same sample. A file that is not there has none. end: bytes of it that are read.
    """
    places = _index(path, end)
    sizes = {g: sum(min(size, 3 * TEXT) for _, size in where) for g, where in places.items()}
    chosen = choose(sizes, budget)
    questions: dict[str, dict] = {}
    shown = 0
    with open(path if places else os.devnull, "rb") as file:
        for group in sorted(chosen):
            found = [_record(file, *where) for where in places[group]]
            shown += len(found)
            first = found[0]
            made = {"id": group[1], "question": _text(first.get("question")),
                    "gold": _text(first.get("gold")), "steps": []}  # fmt: skip
            kept = [shorten(record) for record in found]
            questions.setdefault(group[1], made)["steps"].append(
                {"step": group[0], "completions": kept}
            )
    total = sum(map(len, places.values()))
    return {"total": total, "shown": shown, "questions": list(questions.values())}


def choose(sizes: dict[Group, int], budget: int) -> set[Group]:
    """Return the groups to show, of no more bytes than `budget` together.

    All of them if they fit. Else half of the budget is for the questions that came at most
    steps, with some of these steps from first to last; the rest is spread over all steps.
    """
    chosen: set[Group] = set()
    left = [budget // 2]

    def take(group: Group) -> None:
        if group not in chosen and sizes[group] <= left[0]:
            chosen.add(group)
            left[0] -= sizes[group]

    if sum(sizes.values()) <= budget:
        return set(sizes)
    by_question, by_step = defaultdict(list), defaultdict(list)
    for group in sorted(sizes):
        by_question[group[1]].append(group)
        by_step[group[0]].append(group)
    for groups in sorted(by_question.values(), key=lambda g: (-len(g), derive(g[0][1]))):
        for group in evenly(groups, STEPS_OF_A_QUESTION):
            take(group)
        if left[0] < budget // 50:
            break
    left[0] += budget - budget // 2
    queues = [sorted(by_step[step], key=lambda g: derive(*g)) for step in halving(sorted(by_step))]
    while left[0] > budget // 100 and any(queues):
        for queue in queues:
            if queue:
                take(queue.pop())
    return chosen


def evenly(items: list, most: int) -> list:
    """Return at most `most` of the items, from the first to the last.

    >>> evenly([1, 2, 3, 4, 5], 3)
    [1, 3, 5]
    """
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def halving(items: list) -> list:
    """Return all items: both ends, then what halves the largest gaps.

    >>> halving([1, 2, 3, 4, 5])
    [1, 5, 3, 2, 4]
    """
    order, gaps = items[:1] + items[1:][-1:], [(0, len(items) - 1)]
    for first, last in gaps:
        middle = (first + last) // 2
        if first < middle < last:
            order.append(items[middle])
            gaps += [(first, middle), (middle, last)]
    return order


def shorten(record: dict) -> dict:
    """Return what the page shows of a record; a text that is too long is cut, and says so."""
    kept = {name: _plain(record[name]) for name in KEPT if record.get(name) is not None}
    text = kept["text"] = _text(record.get("text"))
    if len(text) > TEXT:
        kept |= {"text": text[:TEXT], "cut": len(text)}
    return kept


def _plain(value):
    """Return a value with its texts shortened and no number that JSON has not."""
    if isinstance(value, dict):
        return {str(name)[:200]: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value[:TEXT]]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value[:TEXT] if isinstance(value, str) else value


def _text(value) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _index(path: Path, end: float) -> dict[Group, list[tuple[int, int]]]:
    """Return where each group's lines stand: (first byte, length) of each."""
    places: dict[Group, list[tuple[int, int]]] = defaultdict(list)
    for start, line in _lines(path, end):
        try:
            record = json.loads(line)
            step, question = float(record["step"]), str(record["id"])
        except (ValueError, KeyError, TypeError):
            continue
        if math.isfinite(step):
            places[step, question].append((start, len(line)))
    return places


def _lines(path: Path, end: float) -> Iterator[tuple[int, bytes]]:
    if not path.exists():
        return
    start = 0
    with open(path, "rb") as file:
        for line in file:
            if start + len(line) > end:
                return
            yield start, line
            start += len(line)


def _record(file, start: int, length: int) -> dict:
    file.seek(start)
    return json.loads(file.read(length))
