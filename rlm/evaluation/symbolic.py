"""Several questions of each template: accuracy by template, and how much it varies.

Files as GSM-Symbolic has them (arXiv:2410.05229): a line is an object with `question`, `answer`
("... #### 42" or the number) and the template's id; several lines share one. The paper's spread
is that of whole draws: draw 1 of every template, draw 2 of every template, ...
"""

from dataclasses import dataclass

from rlm.data import sources
from rlm.data.rows import own_example
from rlm.errors import InputError
from rlm.evaluation.comparison import share, strict
from rlm.evaluation.measure import Evaluation
from rlm.evaluation.statistics import mean_and_spread
from rlm.records import Example

# The template's id and the number of the draw, by the first of these fields that a row has.
TEMPLATE_FIELDS = ("template_id", "template", "original_id", "id")
DRAW_FIELDS = ("instance", "draw")


@dataclass(frozen=True)
class Draws:
    """examples: one per line, with its template. draws: the draw each belongs to."""

    examples: list[Example]
    draws: list[str]


def read(path: str) -> Draws:
    """Return the questions of a file, or of all files of a folder.

    Without a field `instance` or `draw` the first question of each template is draw 0, the next
    one draw 1, and so on. InputError for a broken line, one without a template, the same draw
    of a template twice, or if no template has two draws.
    """
    examples, draws = [], []
    counts, taken = dict[str, int](), dict[str, str]()
    for file in sources.find_files(path):
        for where, row in sources.read_rows(file):
            template = _field(row, TEMPLATE_FIELDS)
            if template is None:
                raise InputError(f"{where}: no template; name it in one of the fields "
                                 f"{', '.join(TEMPLATE_FIELDS)}")  # fmt: skip
            draw = _field(row, DRAW_FIELDS) or str(counts.get(template, 0))
            counts[template] = counts.get(template, 0) + 1
            id = f"{template}~{draw}"
            if id in taken:
                raise InputError(f"{where}: draw {draw} of template {template} once more; "
                                 f"it is in {taken[id]} too")  # fmt: skip
            taken[id] = where
            made = own_example(row, where, id)
            examples.append(Example(id, made.question, made.gold, None, template, made.steps))
            draws.append(draw)
    if max(counts.values(), default=0) < 2:
        raise InputError(f"{path}: no template has two questions, so there is no spread; "
                         "give several draws of each template")  # fmt: skip
    return Draws(examples, draws)


def _field(row: dict, names: tuple[str, ...]) -> str | None:
    values = ("" if row.get(name) is None else str(row[name]).strip() for name in names)
    return next(filter(None, values), None)


def spread(found: Draws, evaluation: Evaluation) -> dict:
    """Return a model's accuracy by template and by draw, each with mean and standard deviation.

    accuracy: of all questions, with its 95 % Wilson interval. by_template: mean and deviation of
    right (1) or not (0) over a template's draws. by_draw: accuracy of each draw that holds every
    template, with their mean and deviation, as the paper reports it; None for fewer than two such
    draws. expected: the deviation that
    by_draw would have if each draw of a template were right or not by chance alone, at the rate
    of that template; only what is above it says something. Deviations are of samples (n - 1).
    """
    right = [strict(row) for row in evaluation.rows]
    templates, draws = dict[str, list](), dict[str, list]()
    for example, draw, outcome in zip(found.examples, found.draws, right, strict=True):
        templates.setdefault(example.template, []).append(outcome)
        draws.setdefault(draw, []).append(outcome)
    by_template = {name: _figures(outcomes) for name, outcomes in templates.items()}
    whole = {d: sum(x) / len(x) for d, x in draws.items() if len(x) == len(templates)}
    several = len(whole) > 1
    mean, deviation = mean_and_spread(list(whole.values())) if several else (None, None)
    variance = sum(each["deviation"] ** 2 for each in by_template.values())
    return {
        "model": evaluation.name,
        "accuracy": share(sum(right), len(right)),
        "by_template": by_template,
        "by_draw": {"draws": len(whole), "templates": len(templates), "mean": mean,
                    "deviation": deviation, "accuracy": whole},
        "expected": variance**0.5 / len(templates) if several else None,
    }  # fmt: skip


def _figures(outcomes: list[bool]) -> dict:
    mean, deviation = mean_and_spread([float(x) for x in outcomes])
    return {"draws": len(outcomes), "mean": mean, "deviation": deviation}


def rows(found: Draws, evaluations: list[Evaluation]) -> list[dict]:
    """Return a row per model and question, with its draw."""
    return [
        {"model": e.name, "draw": draw} | row
        for e in evaluations
        for draw, row in zip(found.draws, e.rows, strict=True)
    ]
