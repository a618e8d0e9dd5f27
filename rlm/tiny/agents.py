"""Trains weights/tiny_agents_lora: the tiny base as a worker that does one sum a call.

    python -m rlm.tiny.agents                    # three minutes of one core
    python -m rlm.tiny.agents --steps 20 --output runs/toy_agents

Which sum it does, its system prompt decides: one of ROLES. With a question alone it takes the
numbers of the first sum; with the output of another agent, that result and the number that is
still to come. Asked without a role it answers at once, and is mostly wrong. So a problem of two
sums takes two agents, in the right roles: that is what an orchestrator has to find out.
This takes something away from the base on purpose: by itself it works such problems out in one
long call. The skill is made, so that composing matters; nothing is claimed beyond that.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rlm.data.problems import Sum, addition_question, number, tell
from rlm.data.splits import split_of
from rlm.seeds import derive
from rlm.tiny import recipe_parser

ROLES = {"Add.": "+", "Subtract.": "-", "Multiply.": "*", "Divide.": "/"}
LIMIT = 3000  # largest result that a worker names
REFUSAL = "I can not do that."  # to a sum that has no whole, positive result


@dataclass(frozen=True)
class Settings:
    """What makes the adapter; the same numbers give the same weights on the same machine."""

    base: str = "weights/tiny_base"
    seed: int = 0
    steps: int = 1200
    batch_rows: int = 16
    rate: float = 3e-3
    warmup_steps: int = 30
    lora_r: int = 16
    lora_alpha: float = 32.0


@dataclass(frozen=True)
class Task:
    """A question of two sums; the second one takes the result of the first."""

    question: str
    first: Sum
    second: Sum

    def follow(self, result: int, sign: str) -> Sum:
        """Return the second sum with another sign, and another result of the first."""
        if self.second.left == self.first.result:
            return Sum(result, sign, self.second.right, ())
        return Sum(self.second.left, sign, result, ())


def draw(rng: random.Random, split: str = "train") -> Task:
    """Return a question of the split: half of them additions, half stories of two sums."""
    while True:
        if rng.random() < 0.5:
            a, b, c = (number(rng, 1, 3) for _ in range(3))
            task = Task(addition_question(a, b, c), Sum(a, "+", b, ()), Sum(a + b, "+", c, ()))
        else:
            story = tell(rng, 2)
            task = Task(story.question, *story.sums)
        if split_of(task.question) == split:
            return task


def reply(sum_: Sum) -> str:
    """Return a worker's words: its sum and the result, or the refusal.

    >>> print(reply(Sum(31, "+", 15, ())))
    31 + 15 = 46
    The answer is 46.
    >>> reply(Sum(31, "/", 15, ()))
    'I can not do that.'
    """
    if not possible(sum_):
        return REFUSAL
    return f"{sum_.left} {sum_.sign} {sum_.right} = {sum_.result}\nThe answer is {sum_.result}."


def possible(sum_: Sum) -> bool:
    """Return whether the sum has a whole, positive result that the base knows."""
    a, b = sum_.left, sum_.right
    if sum_.sign == "*":
        return a * b <= 200
    return (a % b == 0) if sum_.sign == "/" else 0 < sum_.result <= LIMIT


def document(rng: random.Random) -> tuple[str, str]:
    """Return (a user's turn, the worker's reply): first sums, second sums, and no role at all."""
    task, kind = draw(rng), rng.random()
    role, sign = rng.choice(sorted(ROLES.items()))
    # As often as not the role fits, or a right sum would be rare; it never says which one does.
    if rng.random() < 0.4:
        sign = (task.first if kind < 0.45 else task.second).sign
        role = next(name for name, own in ROLES.items() if own == sign)
    if kind < 0.1:
        return task.question, f"The answer is {task.second.result}."
    if kind < 0.45:
        return f"{role}\n\n{task.question}", reply(Sum(task.first.left, sign, task.first.right, ()))
    other = rng.choice(sorted(ROLES.values())) if rng.random() < 0.3 else task.first.sign
    before = Sum(task.first.left, other, task.first.right, ())
    if not possible(before):
        before = task.first
    name = rng.choice("ab")
    heard = f"{role}\n\n{task.question}\n\n{name}: {reply(before)}"
    return heard, reply(task.follow(before.result, sign))


def batches(settings: Settings, tokenizer):
    """Yield (ids [rows, T], weights [rows, T]) without end: 1 on the reply and its end, else 0."""
    from rlm.tiny.base import padded

    rng = random.Random(derive("tiny agents", settings.seed))
    while True:
        rows = []
        for _ in range(settings.batch_rows):
            turn, words = document(rng)
            messages = [{"role": "user", "content": turn}]
            given = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            prompt, said = (
                tokenizer(t, add_special_tokens=False).input_ids for t in (given, words)
            )
            said.append(tokenizer.eos_token_id)
            rows.append((prompt + said, [0.0] * len(prompt) + [1.0] * len(said)))
        yield padded(rows, tokenizer.pad_token_id)


def train(model, tokenizer, settings: Settings, log=print) -> float:
    """Train the LoRA of a PeftModel in place; return the seconds of processor time."""
    import torch

    from rlm.tiny.base import loss_of

    began, shown = time.process_time(), None
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.0)
    stream = batches(settings, tokenizer)
    for step in range(1, settings.steps + 1):
        rise = min(1.0, step / settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.rate * rise * (1 - (step - 1) / settings.steps)
        loss = loss_of(model.get_base_model(), *next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.item() if shown is None else 0.95 * shown + 0.05 * loss.item()
        if step % 100 == 0 or step == settings.steps:
            log(
                f"step {step} of {settings.steps}, {time.process_time() - began:.0f} s: {shown:.4f}"
            )
    return time.process_time() - began


def scores(model, tokenizer, seed: int, questions: int = 200) -> dict[str, float]:
    """Return shares of held-out questions: first and second sum right in their roles, direct.

    compose: both in a row, the second reading what the first really said.
    """
    from rlm.agents.graph import Agent, Graph
    from rlm.agents.runner import Runner
    from rlm.answers.reading import is_correct
    from rlm.engine.engine import Engine

    rng = random.Random(derive("tiny agents scores", seed))
    tasks = [draw(rng, "validation") for _ in range(questions)]
    names = {sign: role for role, sign in ROLES.items()}
    runner = Runner(Engine(model, tokenizer), max_tokens=24)
    jobs = []
    for task in tasks:
        first = Agent(id="a", prompt=names[task.first.sign], reads=[])
        second = Agent(id="b", prompt=names[task.second.sign], reads=["a"])
        jobs.append((task.question, Graph(agents=[first, second])))
    runs = runner.run(jobs, seed=0)
    asked = runner.ask(
        [t.question for t in tasks], samples=1, max_tokens=48, temperature=0.0, seed=0
    )

    def share(texts, golds) -> float:
        pairs = zip(texts, golds, strict=True)
        return sum(is_correct(text, str(gold), "plain") for text, gold in pairs) / questions

    results = [task.second.result for task in tasks]
    return {
        "first": share([r.words[0].output for r in runs], [t.first.result for t in tasks]),
        "compose": share([r.text for r in runs], results),
        "direct": share([row[0].text if row[0] else "" for row in asked], results),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line: a flag for each field of Settings."""
    parser = recipe_parser("rlm.tiny.agents", __doc__, Settings())
    parser.add_argument("--output", default="weights/tiny_agents_lora", help="the adapter's folder")
    parser.add_argument("--threads", type=int, default=1, help="processor threads, default 1")
    options = vars(parser.parse_args(arguments))
    output, threads = options.pop("output"), options.pop("threads")
    settings = Settings(**options)
    import torch

    from rlm.models.loading import add_lora, load_base, save_adapter

    torch.set_num_threads(threads)
    base, tokenizer = load_base(settings.base, device="cpu", dtype="float32")
    model = add_lora(base, r=settings.lora_r, alpha=settings.lora_alpha, seed=settings.seed)
    seconds = train(model, tokenizer, settings, lambda line: print(line, flush=True))
    found = scores(model, tokenizer, settings.seed)
    manifest = {
        "base": settings.base,
        "task": "tiny_agents",
        "format": "plain",
        "settings": asdict(settings),
        "scores": {"validation": found["compose"], **found},
        "processor_seconds": round(seconds),
    }
    save_adapter(model, Path(output), manifest, overwrite=True)
    print(json.dumps(manifest, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
