"""Tasks -> Examples -> Prompts. Where the questions come from, and who may see which.

    load_examples("addition", "train", n=1000)
    load_examples("gsm8k", "test", data="FOLDER")           # or from the hub without `data`
    load_examples("jsonl", "train", data="mine.jsonl")      # {"question": ..., "answer": ...}

Add a task of your own in `load_examples`. How files are read is in rlm/data/sources.py, what a row
means in rlm/data/rows.py, the splits in rlm/data/splits.py, the chat template in
rlm/models/prompts.py.
"""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import Any

from rlm.data import openmath, problems
from rlm.data.dataset import DataSet, open_data
from rlm.data.hub_sets import HUB_SETS
from rlm.data.layouts import Reading
from rlm.data.splits import SPLITS, check_no_overlap, split_of, subset, without
from rlm.errors import InputError
from rlm.models.lookup import adapter_shots, shots_of
from rlm.models.prompts import check_room, end_ids, is_demonstration, make_prompt, sft_tokens
from rlm.records import Example
from rlm.seeds import derive

__all__ = [
    "GENERATED", "SPLITS", "TASKS", "Batches", "Curriculum", "batches", "check_no_overlap",
    "check_room", "end_ids", "examples_for", "fingerprint", "load_examples", "make_prompt",
    "sft_tokens", "trained_on", "training_sets", "without", "worked_examples",
]  # fmt: skip

GENERATED = ("addition", "word_problems", "mixed")
TASKS = (*GENERATED, *HUB_SETS, *openmath.VERSIONS, "jsonl")
ASSUMED = 2000  # generated training questions, where no manifest says how many there were

logger = logging.getLogger("rlm.data")


def load_examples(
    task: str,
    split: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data: str | None = None,
    digits: tuple[int, int] = (1, 3),
    steps: tuple[int, int] = (2, 4),
    scale: tuple[int, int] = (1, 1),
    terse_fraction: float = 0.0,
    notes: bool = False,
    per_question: int = 1,
    reading: Reading | None = None,
    may_be_empty: bool = False,
    opened: DataSet | None = None,
) -> list[Example]:
    """Return examples of a task's split; the same arguments give the same list.

    n: how many; None or 0 takes all that a data set has. Fewer come back if there are fewer.
    seed: which n of a data set, or which questions are made up.
    data: a file or folder of them (JSONL, JSON, CSV, Parquet); without it the hub's, but for jsonl.
    digits, terse_fraction, notes: of additions. steps, scale, terse_fraction, notes: of word
    problems. Task mixed is both of these in turn.
    per_question: solutions of each question in openmath and openmath2.
    reading: columns that are named, the kind of answers, what is done with bad rows.
    opened: what `open_data` returned, so that its files are read once for several splits.
    InputError for unknown names, broken rows, a gold answer that cannot be read, and for an empty
    split unless it `may_be_empty`.
    """
    _check(task, split, n, data)
    made = n or 0  # a generated task has a number, says _check
    told: dict[str, Any] = {"terse_fraction": terse_fraction, "notes": notes}
    stories = told | {"steps": steps, "scale": scale}
    if task == "addition":
        return _made_up(problems.additions, split, made, seed, told | {"digits": digits})
    if task == "word_problems":
        return _made_up(problems.word_problems, split, made, seed, stories)
    if task == "mixed":
        sums = (made + 1) // 2
        parts = [load_examples("addition", split, n=sums, seed=seed, digits=digits, **told)]
        if made > sums:
            parts += [load_examples("word_problems", split, n=made - sums, seed=seed, **stories)]
        return [e for pair in zip_longest(*parts) for e in pair if e is not None]
    if task in openmath.VERSIONS:
        reading = reading or Reading()
        version = openmath.VERSIONS[task]
        wanted = openmath.Wanted(version, split, seed, per_question, reading.kind)
        found = openmath.collect(task, wanted, data, n, reading)
    else:
        opened = opened or open_data(task, data, reading or Reading())
        found = opened.split(split)
    if not found and not may_be_empty:
        taken = f" ({'; '.join(opened.notes)})" if opened and opened.notes else ""
        raise InputError(
            f"--task {task} --data {data or 'of the hub'}: the {split} split is empty{taken}; "
            "add questions, or a file of that split (named train*, val* or test*) to a folder"
        )
    return subset(found, n, seed)


def _check(task: str, split: str, n: int | None, data: str | None) -> None:
    if task not in TASKS:
        raise InputError(f"--task {task}: unknown; choose one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise InputError(f"split {split}: unknown; choose one of {', '.join(SPLITS)}")
    if n is not None and n < 0:
        raise InputError(f"{n} examples: use 1 or more, or 0 for all")
    if task in GENERATED and data:
        raise InputError(f"--data {data}: task {task} makes its own questions; leave --data out")
    if task in GENERATED and not n:
        raise InputError(f"--task {task}: its questions have no end; say how many, 1 or more")
    if task == "jsonl" and not data:
        raise InputError("--task jsonl: needs --data FILE.jsonl, or a folder of such files")


def _made_up(generate: Callable, split: str, n: int, seed: int, options: dict) -> list[Example]:
    """Return n generated examples; a question belongs to the split that its text hashes to."""
    return generate(seed, n, split=split, keep=lambda q: split_of(q) == split, **options)


def examples_for(settings, split: str, n: int | None, **options) -> list[Example]:
    """Return n examples (0: all) of the split of a script's task, as its settings say.

    options: more of `load_examples`.
    """
    return load_examples(
        settings.source,
        split,
        n=n,
        seed=settings.seed,
        data=settings.data,
        **settings.task_options(),
        **options,
    )


def worked_examples(settings, adapters: Iterable[str | None] = ()) -> list[Example]:
    """Return the worked examples that stand before every question, as many as --shots says.

    adapters: folders; the first whose manifest has that many decides. Else they are drawn from
    the training split by the seed, of those that have a solution. InputError if there are too few.
    """
    wanted = settings.shots
    if not wanted:
        return []
    for adapter in filter(None, adapters):
        known = adapter_shots(adapter)
        if len(known) == wanted:
            return known
    options: dict[str, Any] = settings.task_options()
    if "terse_fraction" in options:
        options |= {"terse_fraction": 0.0}  # they show how to work it out
    endless = settings.source in (*GENERATED, *openmath.VERSIONS)
    seed = derive("shots", settings.seed)
    pool = load_examples(
        settings.source, "train", n=wanted if endless else None, seed=seed, data=settings.data,
        may_be_empty=True, **options,
    )  # fmt: skip
    found = subset([e for e in pool if is_demonstration(e, settings.format)], wanted, seed)
    if len(found) < wanted:
        raise InputError(
            f"{settings.given('shots')}: {len(found)} training questions of task "
            f"{settings.source} have a solution that can be shown; use --shots {len(found)}"
        )
    return found


def training_sets(settings) -> tuple[list[Example], list[Example]]:
    """Return (training, validation) examples as the settings say; no question is in both.

    Validation is empty where the data have no question to spare, which is told.
    """
    opened = None
    if settings.source not in (*GENERATED, *openmath.VERSIONS):
        opened = open_data(settings.source, settings.data, **settings.task_options())
    read = partial(examples_for, settings, opened=opened)
    validation = read("validation", settings.eval_samples, may_be_empty=True)
    if not validation:
        logger.warning(
            "--data %s: too few questions for a validation, so it trains without one: what is "
            "kept is the adapter of the last step, whether or not it is the best", settings.data
        )  # fmt: skip
    train, dropped = without(read("train", settings.num_samples), validation)
    if dropped:
        logger.warning("%d training questions left out: the validation has them", len(dropped))
    shots = worked_examples(settings, [settings.adapter])
    train, validation = without(train, shots)[0], without(validation, shots)[0]
    if not train:
        raise InputError(
            f"{settings.given('shots')}: no other training question is left; use fewer"
        )
    check_no_overlap(train, validation, shots)
    return train, validation


def trained_on(settings, manifest: dict) -> tuple[list[Example], list[Example], str]:
    """Return (training set, those of it that were seen, a line on how sure that is).

    manifest: of the adapter, {} if there is none. The training set is made again from the
    settings in it; its fingerprint says whether it is the same. Of GRPO the seen questions are
    those that its batches had given out at the step that was kept. Where the adapter was trained
    on another task, or nothing is known, both are what training with `settings` would begin with.
    """
    before = manifest.get("settings") or {}
    known = bool(before) and before.get("task") == settings.task
    before = before if known else {"seed": settings.seed}
    options = settings.task_options()
    if "terse_fraction" in options:
        options["terse_fraction"] = before.get("terse_fraction", options["terse_fraction"])
    place = {"seed": before.get("seed", settings.seed), "data": settings.data}
    number = before.get("num_samples") or (ASSUMED if settings.task in GENERATED else None)
    training = load_examples(settings.task, "train", n=number, **place, **options)
    training, _ = without(training, shots_of(manifest))
    if not known:
        return training, training, "no model here is known to have been trained on these questions"
    solved = [e for e in training if e.solution is not None]
    same = manifest.get("data") in (fingerprint(training), fingerprint(solved))
    note = "made again, with the fingerprint that the manifest has" if same else (
        "made again from the manifest's settings, but their fingerprint is another one: the data "
        "or a validation set may have changed, so not every one of them needs to have been seen"
    )  # fmt: skip
    own = manifest.get("demonstrations") or {}
    if own.get("kind") == "own":
        note = (
            "made again from the manifest's settings; the model's own answers to "
            f"{own['count']} of them were trained on"
        )
    seen, step = training, manifest.get("step") or 0
    if "questions_per_step" in before and step:
        batches = Batches(training, before["questions_per_step"], seed=place["seed"])
        drawn = {e.id for _ in range(step) for e in next(batches)}
        seen = [e for e in training if e.id in drawn]
    return training, seen, note


def fingerprint(examples: Iterable[Example]) -> str:
    """Return 16 hex digits that change with any question, gold, solution, kind or their order."""
    digest = hashlib.sha256()
    for e in examples:
        kind = [] if e.kind == "number" else [e.kind, *e.accepted]
        digest.update(json.dumps([e.question, e.gold, e.solution, *kind]).encode() + b"\n")
    return digest.hexdigest()[:16]


def batches(examples: list[Example], settings) -> "Batches":
    """Return where a GRPO training gets its questions from, a batch a step."""
    kind = Curriculum if settings.curriculum else Batches
    return kind(examples, settings.questions_per_step, seed=settings.seed)


class Batches:
    """Batches of examples without end: each pass over them in a new order, fixed by the seed.

    A batch may begin in one pass and end in the next; none is shorter. `state` is all that is
    needed to go on at the same place later.
    """

    def __init__(self, examples: list[Example], batch_size: int, *, seed: int):
        if not examples or batch_size < 1:
            raise InputError(
                f"{len(examples)} examples in batches of {batch_size}: both must be 1 or more"
            )
        self.examples, self.batch_size, self.seed = list(examples), batch_size, seed
        self.drawn = 0  # examples that were given out, over all passes

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> list[Example]:
        batch: list[Example] = []
        while len(batch) < self.batch_size:
            epoch, place = divmod(self.drawn, len(self.examples))
            part = self._order(epoch)[place : place + self.batch_size - len(batch)]
            batch += [self.examples[i] for i in part]
            self.drawn += len(part)
        return batch

    def peek(self) -> list[Example]:
        """Return the next batch without giving it out: it comes again."""
        drawn = self.drawn
        batch = next(self)
        self.drawn = drawn
        return batch

    def observe(self, batch) -> None:
        """Take note of what a batch of rollouts earned; here it changes nothing."""

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.examples)))
        random.Random(derive("batches", self.seed, epoch)).shuffle(order)
        return order

    def state(self) -> dict:
        """Return the position, for JSON."""
        return {"drawn": self.drawn, "seed": self.seed, "data": fingerprint(self.examples)}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken; InputError if data or seed are not the same."""
        now = self.state()
        for name in ("data", "seed"):
            if state[name] != now[name]:
                raise InputError(
                    f"the run to resume had {name} {state[name]}, this one has {now[name]}; "
                    "resume with the same settings, or start anew with --resume never"
                )
        self.drawn = state["drawn"]


class Curriculum(Batches):
    """Batches that prefer questions which are solved sometimes: those from which GRPO learns.

    The weight of a question is the variance p (1 - p) of a reward of 0 or 1 that is to be expected
    after `right` and `wrong` answers, if every pass rate p was as likely before (a Beta(right + 1,
    wrong + 1) of which E[p (1 - p)] = (right + 1)(wrong + 1) / ((n + 2)(n + 3))), times 6, so that
    one never sampled has 1. Each time a question comes back its older answers count half, as they
    are of an older policy. A batch is drawn without repetition (Efraimidis and Spirakis 2006: the
    largest keys u^(1/weight)).
    """

    FADING = 0.5

    def __init__(self, examples: list[Example], batch_size: int, *, seed: int):
        super().__init__(examples, batch_size, seed=seed)
        self.answers: dict[int, tuple[float, float]] = {}  # right, wrong
        self._places = {example.id: i for i, example in enumerate(self.examples)}

    def __next__(self) -> list[Example]:
        draw = random.Random(derive("curriculum", self.seed, self.drawn))
        keys = [draw.random() ** (1 / self.weight(i)) for i in range(len(self.examples))]
        order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
        rounds = -(-self.batch_size // len(order))  # more than there are: all of them again
        self.drawn += self.batch_size
        return [self.examples[i] for i in (order * rounds)[: self.batch_size]]

    def weight(self, place: int) -> float:
        """Return how likely a question is drawn, beside the others."""
        right, wrong = self.answers.get(place, (0.0, 0.0))
        seen = right + wrong
        return 6 * (right + 1) * (wrong + 1) / ((seen + 2) * (seen + 3))

    def observe(self, batch) -> None:
        """Count the right and wrong answers of a `rlm.rollouts.batch.Batch`."""
        for example, scores in zip(batch.examples, batch.scores, strict=True):
            judged = [s.parts.get("correctness", s.total) for s in scores if s.judged]
            if judged:
                place, right = self._places[example.id], sum(x >= 1 for x in judged)
                old = [self.FADING * count for count in self.answers.get(place, (0.0, 0.0))]
                self.answers[place] = old[0] + right, old[1] + len(judged) - right

    def state(self) -> dict:
        """Return the position and what was answered, for JSON."""
        return super().state() | {"answers": sorted(self.answers.items())}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken; InputError as `Batches.restore`, and for an older form."""
        super().restore(state)
        if "answers" not in state:
            raise InputError(
                "the run to resume kept its curriculum as an older version did, without the number "
                "of answers; finish it with that version, or start anew with --resume never"
            )
        self.answers = {int(place): (right, wrong) for place, (right, wrong) in state["answers"]}
