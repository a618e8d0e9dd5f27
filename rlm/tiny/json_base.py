"""Makes weights/tiny_json_base: the tiny base, taught to note the sums of a question as JSON.

    python -m rlm.tiny.json_base                      # three minutes of one core
    python -m rlm.tiny.json_base --steps 20 --output runs/toy_json

The tiny base's text has no braces, brackets or quotes. Their embeddings, tied to the output, never
learned anything: they differ by less than rounding lets a LoRA tell apart, so no fine-tuning of
linear layers makes the base write JSON. Here the rows of such tokens are drawn anew, as one does
for tokens that are added to a vocabulary.
Then all weights learn to note which sums a question takes, in order, as signs in JSON of many
shapes: {"sum":["*","-"]}, [{"next":"*"},{"next":"-"}]. Without that it cannot tell the kinds of
questions apart where it writes JSON, and a reward of 0 or 1 does not teach it that in minutes.
It sees no graph of agents and no name of a role: that a graph with the right roles, in the right
order, answers a question, is left to find out (configs/orchestrator.yaml).
"""

import random
from dataclasses import dataclass

from rlm.data.problems import addition_question, number, tell
from rlm.data.splits import split_of
from rlm.seeds import derive
from rlm.tiny.corpus import WORDS
from rlm.tiny.taught import Recipe, run

CHARACTERS = '{"agents":[{"id":"a","prompt":"","reads":[]},{"id":"b","prompt":"","reads":["a"]}]}'
ALIKE = 0.1  # rows that are nearer to each other than this never learned to differ
KEPT = 0.5  # of their common direction, which keeps them unlikely where nobody asks for them
FRESH = 2.0  # length of what is drawn for each of them; rows that learned have 2 to 3
KEYS = sorted({word for word in WORDS if word.isalpha() and word.islower()})
ADDITIONS = 0.2  # share of the questions that are additions; the others are stories of two sums
# Loss weights of what a note is made of: its keys are chance, its signs are what is to be learned.
WEIGHTS = {"sign": 1.0, "key": 0.02, "other": 0.2}


@dataclass(frozen=True)
class Settings:
    """What makes the base; the same numbers give the same weights on the same machine."""

    base: str = "weights/tiny_base"
    seed: int = 0
    steps: int = 400
    batch_rows: int = 32
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 20


def unlearned(weight, ids: list[int]) -> list[int]:
    """Return those of the ids whose row of weight [V, H] has another one nearer than ALIKE."""
    import torch

    rows = torch.cdist(weight[ids].float(), weight.float())  # [n, V]
    rows[torch.arange(len(ids)), torch.tensor(ids)] = float("inf")
    return [id for id, near in zip(ids, rows.amin(1).tolist(), strict=True) if near < ALIKE]


def revive(model, tokenizer, seed: int = 0) -> list[int]:
    """Draw the rows of CHARACTERS that never learned anew, in place; return their ids."""
    import torch

    weight = model.get_input_embeddings().weight
    ids = sorted(set(tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]))
    found = unlearned(weight, ids)
    generator = torch.Generator().manual_seed(derive("tiny json", seed))
    fresh = torch.randn(len(found), weight.shape[1], generator=generator)
    fresh = FRESH * fresh / fresh.norm(dim=1, keepdim=True)  # [n, H]
    with torch.no_grad():
        weight[found] = (KEPT * weight[found].float() + fresh).to(weight.dtype)
    return found


def draw(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """Return (question of the split, the signs of its two sums in order)."""
    while True:
        if rng.random() < ADDITIONS:
            question, signs = addition_question(*(number(rng, 1, 3) for _ in range(3))), "++"
        else:
            story = tell(rng, 2)
            question, signs = story.question, "".join(step.sign for step in story.sums)
        if split_of(question) == split:
            return question, signs


def note(rng: random.Random, signs: str) -> list[tuple[str, str]]:
    """Return the signs as JSON of a random shape, in pieces: (text, its kind in WEIGHTS).

    >>> "".join(text for text, _ in note(random.Random(1), "*-"))
    '{"START":"*","after":"-"}'
    """
    one, two = rng.sample(KEYS, 2)
    first, second = ((sign, "sign") for sign in signs)
    shape: list[str | tuple[str, str]] = rng.choice([
        ['["', first, '","', second, '"]'],
        ['{"', (one, "key"), '":["', first, '","', second, '"]}'],
        ['{"', (one, "key"), '":"', first, '","', (two, "key"), '":"', second, '"}'],
        ['[{"', (one, "key"), '":"', first, '"},{"', (one, "key"), '":"', second, '"}]'],
        ['[{"', (one, "key"), '":"a","', (two, "key"), '":"', first, '"},{"', (one, "key"),
         '":"b","', (two, "key"), '":"', second, '"}]'],
    ])  # fmt: skip
    return [(piece, "other") if isinstance(piece, str) else piece for piece in shape]


def asked(question: str, tokenizer) -> list[int]:
    """Return the ids of the question as a chat, up to where the reply begins."""
    turn = {"role": "user", "content": question}
    return tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)


def batch(rng: random.Random, tokenizer, rows: int):
    """Return (ids [rows, T], weights [rows, T]): those of WEIGHTS on the note, else 0."""
    from rlm.tiny.base import padded

    made = []
    for _ in range(rows):
        question, signs = draw(rng)
        ids = asked(question, tokenizer)
        weights = [0.0] * len(ids)
        for text, kind in note(rng, signs):
            piece = tokenizer(text, add_special_tokens=False).input_ids
            ids, weights = ids + piece, weights + [WEIGHTS[kind]] * len(piece)
        made.append(([*ids, tokenizer.eos_token_id], [*weights, WEIGHTS["other"]]))
    return padded(made, tokenizer.pad_token_id)


def batches(tokenizer, settings: Settings):
    """Yield what `batch` returns, without end."""
    rng = random.Random(derive("tiny json notes", settings.seed))
    while True:
        yield batch(rng, tokenizer, settings.batch_rows)


def score(model, tokenizer, seed: int, questions: int = 200) -> float:
    """Return the share of held-out questions whose two sums the model notes in ["+","+"]."""
    from rlm.engine.engine import Engine, Sampling
    from rlm.records import Prompt

    rng = random.Random(derive("tiny json score", seed))
    drawn = [draw(rng, "validation") for _ in range(questions)]
    opening = tokenizer('["', add_special_tokens=False).input_ids
    prompts = [Prompt(asked(question, tokenizer) + opening) for question, _ in drawn]
    greedy = Sampling(max_tokens=8, temperature=0.0)
    said = Engine(model, tokenizer).generate(prompts, 1, greedy, seed=0)
    wanted = [f'{signs[0]}","{signs[1]}"]' for _, signs in drawn]
    return sum(row[0].text == w for row, w in zip(said, wanted, strict=True)) / questions


def main(arguments: list[str] | None = None) -> int:
    """The command line: a flag for each field of Settings."""

    def prepare(model, tokenizer, settings) -> dict:
        found = revive(model, tokenizer, settings.seed)
        return {"drawn_anew": [tokenizer.decode([id]) for id in found]}

    def scores(model, tokenizer, settings) -> dict[str, float]:
        return {"sums_noted": score(model, tokenizer, settings.seed)}

    recipe = Recipe(
        "rlm.tiny.json_base", __doc__, "weights/tiny_json_base", Settings(), batches, scores,
        prepare,
    )  # fmt: skip
    return run(recipe, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
