"""Does a model know the method, or the questions? The same questions changed, and harder ones.

Two tests. Robustness: `question_sets` makes the sets around the questions that were trained on,
`robustness_metrics` are the accuracies on them, and the differences to the seen ones where a set
asks the same questions in another shape; rlm/data/variants.py changes the questions. Templates:
`read_draws` reads several questions of each template, in files as GSM-Symbolic has them
(arXiv:2410.05229): a line is an object with `question`, `answer` ("... #### 42" or the number) and
the template's id; several lines share one. The paper's deviation is that of whole draws: draw 1 of
every template, draw 2 of every template, ... Each test has its card: its metrics in Markdown, with
what they mean. No model and no settings are known here.
"""

from dataclasses import dataclass

from rlm.data import problems, sources
from rlm.data.overlap import WORDS, shared
from rlm.data.rows import own_example
from rlm.data.splits import keys, question_key, split_of, subset
from rlm.data.variants import ADDITION_CHANGES, WORD_CHANGES, variants
from rlm.errors import InputError
from rlm.evaluation.comparison import RESAMPLES, lenient, paired, proportion, strict
from rlm.evaluation.markdown import WIDTH, p_value, percent, points, table
from rlm.evaluation.measure import Evaluation
from rlm.evaluation.statistics import mean_and_spread
from rlm.records import Example
from rlm.seeds import derive

MOST_STEPS = 8  # of a word problem


@dataclass(frozen=True)
class QuestionSet:
    """name and meaning: for the report. paired: each question is a changed one of the seen."""

    name: str
    meaning: str
    examples: list[Example]
    paired: bool = False


def question_sets(
    task: str,
    training: list[Example],
    seen: list[Example],
    unseen: list[Example],
    *,
    n: int,
    seed: int,
    train_seed: int = 0,
    digits: tuple[int, int] = (1, 3),
    steps: tuple[int, int] = (2, 4),
) -> list[QuestionSet]:
    """Return n (0: all) of the seen questions, the held-out ones, and the sets made from these.

    training: all training questions; seen: those of them that were drawn. digits, steps: what
    was trained with. All questions that are made belong to the test split by their hash, so that
    no training here can have had them. Tasks whose questions come from files have none made.
    """
    seen = subset(seen, n, seed)
    sets = [
        QuestionSet("seen", "questions that were trained on", seen),
        QuestionSet("unseen", "the test split, of the same kind", unseen),
    ]

    def changed(names: dict[str, str], **more) -> None:
        for change, meaning in names.items():
            made = variants(seen, change, seed=seed, keep=_held_out, **more)
            if made:
                sets.append(QuestionSet(change, meaning, made, paired=True))

    if task == "addition":
        names = {k: v for k, v in ADDITION_CHANGES.items() if k != "larger" or digits[1] < 9}
        changed(names, digits=digits[1])
    if task == "word_problems":
        told: dict[str, problems.Story] = {}
        problems.word_problems(
            train_seed, len(training), steps=steps, told=told,
            split="train", keep=lambda question: split_of(question) == "train",
        )  # fmt: skip
        changed(WORD_CHANGES, stories=told)
        if steps[1] < MOST_STEPS:
            more = (steps[1] + 1, steps[1] + 1)
            made = problems.word_problems(seed, len(seen), steps=more, split="test", keep=_held_out)
            sets.append(QuestionSet("longer", f"{more[0]} steps, one more than trained on", made))
    return sets


def _held_out(question: str) -> bool:
    return split_of(question) == "test"


def robustness_metrics(
    sets: list[QuestionSet],
    evaluations: list[Evaluation],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[dict]:
    """Return for each set its name, meaning, questions and every model's metrics.

    evaluations: of all sets' examples in a row. strict, lenient: right answers by both readings,
    with 95 % Wilson intervals. change: of a paired set, strictly read, against the seen questions
    it was made from, as `rlm.evaluation.comparison.paired`; None elsewhere. `questions` may be
    fewer than the seen ones where a question has no variant.
    """
    found = []
    by_model = {e.name: _by_set(sets, e) for e in evaluations}
    for made in sets:
        total, models = len(made.examples), {}
        for name, by_set in by_model.items():
            mine, change = by_set[made.name], None
            if made.paired:
                before = by_set["seen"]
                pairs = [(before[id.partition("~")[0]], row) for id, row in mine.items()]
                outcomes = [(strict(one), strict(other)) for one, other in pairs]
                place = derive("robustness", seed, name, made.name)
                change = paired(outcomes, seed=place, resamples=resamples)
            models[name] = {
                "strict": proportion(sum(map(strict, mine.values())), total),
                "lenient": proportion(sum(map(lenient, mine.values())), total),
                "change": change,
            }
        figure = {"set": made.name, "meaning": made.meaning, "questions": total}
        found.append(figure | {"models": models})
    return found


def _by_set(sets: list[QuestionSet], evaluation: Evaluation) -> dict[str, dict[str, dict]]:
    """Return for each set the model's rows, by the question's id."""
    given, found = iter(evaluation.rows), {}
    for made in sets:
        found[made.name] = {e.id: next(given) for e in made.examples}
    return found


def overlap(sets: list[QuestionSet], training: list[Example]) -> list[dict]:
    """Return for each set the share of questions that stand in the training set, in whole or part.

    same: the whole question. kept, normalised: a run of WORDS words, with the numbers as they
    are, and with every number taken as the same.
    """
    known, texts, found = keys(training), [e.question for e in training], []
    for made in sets:
        questions = [e.question for e in made.examples]
        row = {"set": made.name, "questions": len(questions), "words": WORDS}
        row["same"] = proportion(sum(question_key(q) in known for q in questions), len(questions))
        for name, keep in (("kept", True), ("normalised", False)):
            hits = shared(questions, texts, keep_numbers=keep)
            row[name] = proportion(sum(hits), len(questions))
        found.append(row)
    return found


def robustness_rows(sets: list[QuestionSet], evaluations: list[Evaluation]) -> list[dict]:
    """Return a row per set, question and model: all that the metrics are made of."""
    names = [(made.name, example.steps) for made in sets for example in made.examples]
    return [
        {"model": e.name, "set": name, "steps": steps} | row
        for e in evaluations
        for (name, steps), row in zip(names, e.rows, strict=True)
    ]


# --- the card of it


def robustness_card(sets: list[dict], overlap: list[dict], facts: dict[str, object]) -> str:
    """Return the card of a robustness test; facts: what was asked and how, a line each."""
    names = list(sets[0]["models"])
    return "\n\n".join((
        f"# {', '.join(names)}: the questions that were trained on, changed and made harder",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Accuracy",
        robustness_table(sets, meanings=True),
        "Per cent right, with 95 % Wilson intervals. *To seen*: where a set asks the seen "
        "questions in another shape, the difference to the same questions as seen, in percentage "
        f"points, with the 95 % interval of {RESAMPLES:,} paired bootstrap resamples and McNemar's "
        f"exact p. {WIDTH} *Lenient*: the last number of the text is right, whatever its format. A "
        "model that learned the method loses little from *seen* to *unseen*, *names*, *numbers* "
        "and *both*; *larger* and *longer* are outside of what was trained. What is made up "
        "belongs to the test split by its hash; a seen question without such a variant is left "
        "out.",
        _overlap(overlap),
    )) + "\n"  # fmt: skip


def robustness_table(sets: list[dict], *, meanings: bool = False) -> str:
    """Return the accuracies, a line a set; `meanings` adds what a set is."""
    names = list(sets[0]["models"])
    head = ["set", *(["what it is"] if meanings else []), "questions"]
    for name in names:
        head += [name, "to seen", "p", "lenient"]
    lines = []
    for each in sets:
        cells = [each["set"], *([each["meaning"]] if meanings else []), each["questions"]]
        for name in names:
            found, change = each["models"][name], each["models"][name]["change"]
            cells.append(percent(found["strict"]))
            cells += [points(change), p_value(change["p"])] if change else ["", ""]
            cells.append(f"{100 * found['lenient']['share']:.1f}")
        lines.append(cells)
    return table(head, lines)


def _overlap(overlap: list[dict]) -> str:
    words = overlap[0]["words"]
    lines = [[each["set"], each["questions"], *(percent(each[name]) for name in
              ("same", "kept", "normalised"))] for each in overlap]  # fmt: skip
    return "\n\n".join((
        "## How much of it stands in the training questions",
        table(["set", "questions", "the same question", f"{words} words, numbers kept",
               f"{words} words, numbers alike"], lines),
        f"Per cent of a set's questions that stand in the training set as a whole, or share a run "
        f"of {words} words with a training question: with the numbers as they are, and with every "
        "number taken as the same. A shorter question counts as one run.",
    ))  # fmt: skip


# --- several draws of each template

# The template's id and the number of the draw, by the first of these fields that a row has.
TEMPLATE_FIELDS = ("template_id", "template", "original_id", "id")
DRAW_FIELDS = ("instance", "draw")


@dataclass(frozen=True)
class Draws:
    """examples: one per line, with its template. draws: the draw each belongs to."""

    examples: list[Example]
    draws: list[str]


def read_draws(path: str) -> Draws:
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


def symbolic_metrics(found: Draws, evaluation: Evaluation) -> dict:
    """Return a model's accuracy by template and by draw, each with mean and standard deviation.

    accuracy: of all questions, with its 95 % Wilson interval; lenient: the same by the last number,
    all the rest strictly read. by_template: mean and deviation of
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
    by_template = {name: _mean_and_deviation(outcomes) for name, outcomes in templates.items()}
    whole = {d: sum(x) / len(x) for d, x in draws.items() if len(x) == len(templates)}
    several = len(whole) > 1
    mean, deviation = mean_and_spread(list(whole.values())) if several else (None, None)
    variance = sum(each["deviation"] ** 2 for each in by_template.values())
    return {
        "model": evaluation.name,
        "accuracy": proportion(sum(right), len(right)),
        "lenient": proportion(sum(map(lenient, evaluation.rows)), len(right)),
        "by_template": by_template,
        "by_draw": {"draws": len(whole), "templates": len(templates), "mean": mean,
                    "deviation": deviation, "accuracy": whole},
        "expected": variance**0.5 / len(templates) if several else None,
    }  # fmt: skip


def _mean_and_deviation(outcomes: list[bool]) -> dict:
    mean, deviation = mean_and_spread([float(x) for x in outcomes])
    return {"draws": len(outcomes), "mean": mean, "deviation": deviation}


def symbolic_rows(found: Draws, evaluations: list[Evaluation]) -> list[dict]:
    """Return a row per model and question, with its draw."""
    return [
        {"model": e.name, "draw": draw} | row
        for e in evaluations
        for draw, row in zip(found.draws, e.rows, strict=True)
    ]


def symbolic_card(found: list[dict], facts: dict[str, object]) -> str:
    """Return the card of several draws of templates; found: `symbolic_metrics` of each model."""
    names = [each["model"] for each in found]
    templates = found[0]["by_template"]
    head, lines = ["template", "draws"], []
    for name in names:
        head += [f"{name}: mean", "deviation"]
    for template, each in templates.items():
        cells = [template, each["draws"]]
        for model in found:
            metrics = model["by_template"][template]
            cells += [f"{100 * metrics['mean']:.1f}", f"{100 * metrics['deviation']:.1f}"]
        lines.append(cells)
    return "\n\n".join((
        f"# {', '.join(names)} on several draws of {len(templates)} templates",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Accuracy and its spread over the draws",
        symbolic_table(found),
        "Per cent. *Accuracy*: of all questions, with its 95 % Wilson interval. *Lenient*: the "
        "same by the last number of the text, whatever its format. *Mean*, "
        "*deviation*: of the accuracies of whole draws, each with one question of every template "
        "(as arXiv:2410.05229 reports them). *By chance*: the deviation to expect if the draws of "
        "a template differ by chance alone. Deviations are of samples (n - 1).",
        "## By template",
        table(head, lines),
        "Per cent right over the draws of a template, and the deviation of right (100) or not (0).",
    )) + "\n"  # fmt: skip


def symbolic_table(found: list[dict]) -> str:
    """Return the models' accuracies with their spread over whole draws."""
    lines = []
    for each in found:
        draws = each["by_draw"]
        spread = [draws["mean"], draws["deviation"], each["expected"]]
        shown = ["too few" if x is None else f"{100 * x:.1f}" for x in spread]
        both = [percent(each[name]) for name in ("accuracy", "lenient")]
        lines.append([each["model"], *both, draws["draws"], *shown])
    head = ["model", "accuracy", "lenient", "draws", "mean", "deviation", "by chance"]
    return table(head, lines)
