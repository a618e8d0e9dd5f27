"""Known data sets as tasks: where on the hub each is, its splits there, the kind of its answers.

The same names take files by --data in the layout that the data set has on the hub. Facts alone;
reads nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HubSet:
    """name, config: on the hub. splits: ours -> the hub's. kind: of the answers, see
    `rlm.answers.kinds`; None for number or choice, by the row.

    held_out: for evaluation only, all of it is test.
    """

    name: str
    config: str | None
    splits: Mapping[str, str]
    kind: str | None = None
    held_out: bool = field(default=False)


HUB_SETS: dict[str, HubSet] = {
    "gsm8k": HubSet("openai/gsm8k", "main", {"train": "train", "test": "test"}, "number"),
    # Competition mathematics, MATH (arXiv:2103.03874): problem, level, type, solution.
    "math": HubSet(
        "DigitalLearningGmbH/MATH-lighteval", "default", {"train": "train", "test": "test"}, "math"
    ),
    # 500 of its test questions (arXiv:2305.20050), with an answer column.
    "math500": HubSet("HuggingFaceH4/MATH-500", None, {"test": "test"}, "math", held_out=True),
    # The American Invitational Mathematics Examination of 2024: 30 questions, whole numbers.
    "aime": HubSet("HuggingFaceH4/aime_2024", None, {"test": "train"}, "number", held_out=True),
    # MMLU (arXiv:2009.03300): question, choices, answer as a place from 0.
    "choice": HubSet(
        "cais/mmlu",
        "all",
        {"train": "auxiliary_train", "validation": "validation", "test": "test"},
        "choice",
    ),
}
HELD_OUT = tuple(task for task, known in HUB_SETS.items() if known.held_out)


def kind_of_task(task: str) -> str | None:
    """Return the kind of answers that a task's rows have, None where it is by the row."""
    return HUB_SETS[task].kind if task in HUB_SETS else None
