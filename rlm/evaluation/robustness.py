"""Does a model know the method, or the questions? The same questions changed, and harder ones.

`question_sets` makes the sets around the questions that were trained on; `figures` are the
accuracies on them, and the differences to the seen ones where a set asks the same questions in
another shape. It knows no model and no settings; rlm/data/variants.py changes the questions.
"""

from dataclasses import dataclass

from rlm.data import problems
from rlm.data.overlap import WORDS, shared
from rlm.data.splits import keys, question_key, split_of, subset
from rlm.data.variants import ADDITION_CHANGES, WORD_CHANGES, variants
from rlm.evaluation.comparison import RESAMPLES, lenient, paired, share, strict
from rlm.evaluation.measure import Evaluation
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


def figures(
    sets: list[QuestionSet],
    evaluations: list[Evaluation],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[dict]:
    """Return for each set its name, meaning, questions and every model's figures.

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
                "strict": share(sum(map(strict, mine.values())), total),
                "lenient": share(sum(map(lenient, mine.values())), total),
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
        row["same"] = share(sum(question_key(q) in known for q in questions), len(questions))
        for name, keep in (("kept", True), ("normalised", False)):
            hits = shared(questions, texts, keep_numbers=keep)
            row[name] = share(sum(hits), len(questions))
        found.append(row)
    return found


def rows(sets: list[QuestionSet], evaluations: list[Evaluation]) -> list[dict]:
    """Return a row per set, question and model: all that the figures are made of."""
    names = [(made.name, example.steps) for made in sets for example in made.examples]
    return [
        {"model": e.name, "set": name, "steps": steps} | row
        for e in evaluations
        for (name, steps), row in zip(names, e.rows, strict=True)
    ]
