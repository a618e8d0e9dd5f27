"""The settings of task orchestrator: whose questions, which graphs, which frozen model."""

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from rlm.agents.graph import ROLES
from rlm.cli.layers import Settings, option
from rlm.cli.parsing import parse_range
from rlm.errors import InputError
from rlm.models.lookup import check_adapter, check_model, folder_of, is_trained
from settings.shared import by_model


class Orchestrator(Settings):
    """What every script takes beside the class of its questions, `Common`."""

    if TYPE_CHECKING:  # of `Common`, the other parent of each class that has this one
        task: Literal[
            "addition", "word_problems", "mixed", "gsm8k", "math", "math500", "aime", "choice",
            "openmath", "openmath2", "jsonl", "orchestrator",
        ]  # fmt: skip

    questions: Literal[
        "mixed", "addition", "word_problems", "gsm8k", "math", "math500", "aime", "choice",
        "openmath", "openmath2", "jsonl",
    ] = by_model(
        "mixed",
        "gsm8k",
        "with task orchestrator: whose questions; mixed: additions and word problems",
        section="Orchestrator",
    )  # fmt: skip
    agents: tuple[int, int] = option((2, 2), "agents of a graph, 1 to 8: 2 or 1-3", shown="2")
    agent_model: str | None = option(
        None,
        "frozen model of the agents: an adapter's folder, a model's folder, a name on the hub",
        shown="the base with its LoRA off",
    )
    agent_tokens: int = by_model(24, 256, "longest output of an agent, tokens", ge=1, le=131072)
    agent_temperature: float = by_model(0.0, 0.7, "of the agents; 0: greedy", ge=0, le=10)
    prompt_characters: int = option(
        300, "longest system prompt of an agent, characters", ge=1, le=4000
    )
    agent_reads: int = option(4, "agents that one agent may read", ge=1, le=7)
    roles: list[str] = option(
        list(ROLES),
        "system prompts that SFT's random graphs are made of, each in quotes",
        shown="five general ones",
    )
    keep_leaks: bool = option(
        False, "a graph that states the gold answer itself may earn the reward, too"
    )

    @field_validator("agents", mode="before")
    @classmethod
    def _agents(cls, value):
        return parse_range(value, 1, 8)

    @field_validator("agent_model", mode="before")
    @classmethod
    def _named(cls, value, info):
        names = info.data.get("named_models") or {}
        return names.get(value, value) if isinstance(value, str) else value

    @property
    def source(self) -> str:
        """The task whose questions are asked."""
        return self.questions if self.task == "orchestrator" else self.task

    def limits(self) -> dict:
        """What a graph may be, for `rlm.agents.graph.Limits`."""
        low, high = self.agents
        return {"low": low, "high": high, "prompt_characters": self.prompt_characters,
                "reads": self.agent_reads}  # fmt: skip

    def check_values(self) -> None:
        super().check_values()  # type: ignore[misc]
        if self.task != "orchestrator":
            return
        if set(getattr(self, "rewards", {"correctness": 1})) != {"correctness"}:
            raise InputError(f"{self.given('rewards')}: task orchestrator rewards the right answer "
                             "alone; leave --rewards out")  # fmt: skip
        usable = [0 < len(role.strip()) <= self.prompt_characters for role in self.roles]
        if not self.roles or not all(usable):
            raise InputError(f"{self.given('roles')}: none, or one that is blank or longer than "
                             "--prompt-characters; give other ones")  # fmt: skip

    def check_places(self) -> None:
        super().check_places()  # type: ignore[misc]
        if self.task != "orchestrator" or self.agent_model is None:
            return
        place = str(folder_of(self.agent_model) or self.agent_model)
        check = check_adapter if is_trained(place) else check_model
        check(place, self.given("agent_model"))
