"""The settings of a script's questions: where they come from, how they are read and answered.

config.py is the door.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from rlm.answers import math_pool
from rlm.cli.layers import option
from rlm.cli.parsing import parse_range
from rlm.data.hub_sets import kind_of_task
from rlm.data.layouts import Reading
from rlm.errors import InputError
from settings.shared import Shared, by_model

GENERATED = ("addition", "word_problems", "mixed")
FIXED = (*GENERATED, "openmath", "openmath2")  # tasks whose columns are what they are


class Common(Shared):
    run: str = option("", "what is logged goes to runs/NAME", shown="the script's name")
    seed: int = option(0, "seed of data, sampling and new weights", ge=0, le=2**32 - 1)

    task: Literal[
        "addition", "word_problems", "mixed", "gsm8k", "math", "math500", "aime", "choice",
        "openmath", "openmath2", "jsonl", "orchestrator",
    ] = option(
        "addition",
        "where the questions come from; mixed: both of the first; jsonl: files of your own; "
        "orchestrator: those of --questions, and the model writes graphs of agents that answer "
        "them",
        section="Data",
    )  # fmt: skip
    data: str | None = option(
        None,
        "file or folder of the task's data (JSONL, JSON, CSV, Parquet); needed for jsonl, else the "
        "hub",
        shown="the hub",
    )
    question_field: str | None = option(
        None, "column of the question, if its name is not known; a.b for b inside of a"
    )
    answer_field: str | None = option(None, "column of the right answer, as --question-field")
    solution_field: str | None = option(None, "column of the reasoning, as --question-field")
    answers: Literal["number", "math", "choice", "text"] | None = option(
        None,
        "kind of the answers, where a row has no field `kind` of its own; math needs Math-Verify",
        shown="the task's own; jsonl: choice for rows with choices, else number",
    )
    math_seconds: float = option(
        math_pool.SECONDS,
        "deadline of a verdict of kind math, seconds of processor time; after it the answer is "
        "unjudged",
        ge=0.1,
        le=600,
    )
    skip_bad_rows: bool = option(False, "leave out rows that cannot be used, and count them")
    digits: tuple[int, int] = option(
        (1, 3), "digits of the numbers in task addition, 1 to 9: 3 or 1-3", shown="1-3"
    )
    terse_fraction: float = option(
        0.0, "share of generated demonstrations that skip the working", ge=0, le=1
    )
    problem_steps: tuple[int, int] = option(
        (2, 4), "steps of a word problem, 2 to 4: 3 or 2-4", shown="2-4"
    )
    problem_scale: tuple[int, int] = option(
        (1, 1),
        "times that quantities of word problems are larger than those of the tiny base's text, 1 "
        "to 50: 1 or 5-9",
        shown="1",
    )
    per_question: int = option(
        1, "solutions of a question in openmath and openmath2", ge=1, le=1000
    )
    max_tokens: int = by_model(
        160, 512, "longest completion that is sampled, tokens", ge=1, le=131072, section="Sampling"
    )

    @model_validator(mode="before")
    @classmethod
    def _run(cls, given: dict) -> dict:
        return {"run": cls.script} | given

    @field_validator("digits", mode="before")
    @classmethod
    def _digits(cls, value):
        return parse_range(value, 1, 9)

    @field_validator("problem_steps", mode="before")
    @classmethod
    def _steps(cls, value):
        return parse_range(value, 2, 4)

    @field_validator("problem_scale", mode="before")
    @classmethod
    def _scale(cls, value):
        return parse_range(value, 1, 50)

    @property
    def run_dir(self) -> Path:
        """The folder of this run: settings.json, log.csv, ..."""
        return Path("runs") / self.run

    @property
    def source(self) -> str:
        """The task whose questions are asked."""
        return self.task

    def task_options(self) -> dict:
        """What the generator of the questions takes, for `data.load_examples`."""
        terse: dict = {"terse_fraction": self.terse_fraction, "notes": self.notes}
        stories = {"steps": self.problem_steps, "scale": self.problem_scale}
        options: dict[str, dict] = {
            "addition": {"digits": self.digits} | terse,
            "word_problems": stories | terse,
            "mixed": {"digits": self.digits} | stories | terse,
            "openmath": {"per_question": self.per_question},
            "openmath2": {"per_question": self.per_question},
        }
        read = {} if self.source in GENERATED else {"reading": self.reading()}
        return options.get(self.source, {}) | read

    @property
    def notes(self) -> bool:
        """Whether solutions keep their calculator notes, which become calls."""
        return "calculator" in self.tools

    def reading(self) -> Reading:
        """How rows of data are read."""
        return Reading(
            question=self.question_field,
            answer=self.answer_field,
            solution=self.solution_field,
            kind=self.answers,
            skip_bad_rows=self.skip_bad_rows,
            notes=self.notes,
        )

    def process(self) -> dict:
        return super().process() | {"seed": self.seed, "math_seconds": self.math_seconds}

    def check_values(self) -> None:
        super().check_values()
        if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", self.run) or ".." in self.run:
            raise InputError(f"{self.given('run')}: a name of letters, digits, - _ . is needed")
        if self.source in GENERATED and self.data:
            raise InputError(f"{self.given('data')}: task {self.source} makes its own questions; "
                                "leave --data out or choose --task jsonl")  # fmt: skip
        if self.task == "orchestrator" and self.shots:
            raise InputError(f"{self.given('shots')}: task orchestrator has no solutions to show; "
                              "leave it out")  # fmt: skip
        if self.source == "jsonl" and not self.data:
            raise InputError("--task jsonl: needs the file; give it with --data FILE.jsonl")
        if self.data and not os.path.exists(os.path.expanduser(self.data)):
            raise InputError(f"{self.given('data')}: no such file or folder; check the path")
        self._check_rows()
        for name in ("num_samples", "eval_samples"):
            if self.source in GENERATED and getattr(self, name, 1) == 0:
                raise InputError(f"{self.given(name)}: task {self.source} has no end; use a number")

    def _check_rows(self) -> None:
        """InputError for what says how rows are read, where the task's rows are what they are."""
        for name in ("question_field", "answer_field", "solution_field"):
            if getattr(self, name) is not None and (self.source in FIXED or not self.data):
                raise InputError(f"{self.given(name)}: task {self.source} has its own columns; "
                                 "name columns with --task jsonl --data FILE")  # fmt: skip
        if self.skip_bad_rows and self.source in GENERATED:
            raise InputError(f"--skip-bad-rows: task {self.source} makes its own questions; "
                             "leave it out")  # fmt: skip
        if self.source in GENERATED and self.answers not in (None, "number"):
            raise InputError(f"{self.given('answers')}: the answers of task {self.source} are "
                             "numbers; leave --answers out")  # fmt: skip
        if self.source in FIXED and self.answers not in (None, "number", "math"):
            raise InputError(f"{self.given('answers')}: the answers of task {self.source} are "
                             "number or math")  # fmt: skip
        if (self.answers or kind_of_task(self.source)) == "math":
            math_pool.available()
