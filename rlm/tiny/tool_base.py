"""Makes weights/tiny_tool_base: the tiny base, taught to go on from results it is given.

    python -m rlm.tiny.tool_base --output runs/tool_first          # 17 minutes of one core, then 9
    python -m rlm.tiny.tool_base --base runs/tool_first --seed 1 --steps 600 --muon-rate 2e-3 \\
        --adam-rate 1.5e-3
    python -m rlm.tiny.tool_base --steps 20 --output runs/toy_tools

The tiny base knows numbers up to a few hundred and computes what it writes. What a tool returns it
has to copy, into the next sum and into the answer, whatever it would have computed itself; with
larger numbers it does that wrongly so often that calling a tool does not pay. So all weights learn
from worked sums whose results somebody else wrote: word problems with quantities up to nine times
as large, and bare sums that go on from one another. A result stands behind its sum, is read and
not learned, and is drawn at random, so that copying it is the only way to go on. Everything else is
learned: which sum comes next, its numbers, and the last number said. Stories of usual size keep
their true results, which are learned as before; large ones stay beyond the base.
It sees no tag of a tool and none of a format: that one may call, how, and that it pays, is left
to find out (configs/tiny_tools.yaml). The shipped base was made in two goes; its manifest holds the
settings and scores of both.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlm.data.problems import Story, Sum, number, tell
from rlm.data.splits import split_of
from rlm.seeds import derive
from rlm.tiny.corpus import CLOSINGS, NUMBERINGS, OPENINGS, ORDERS, TAGS, chat
from rlm.tiny.taught import Recipe, run

LARGEST_FACTOR = 9  # how many times as large quantities get
USUAL = 0.2  # share of stories of usual size, whose results are learned, as the base learned them
CHAINS = (
    3  # times as many rows of bare sums in a batch as of stories, which are so many times longer
)
# Before a sum, between it and its result, and behind the result; tags are drawn for each text.
MARKS = (("<{a}>", "</{a}><{b}>", "</{b}>"), ("<{a}>", "</{a}><{b}>", "</{b}>"),
         ("<{a}>", "</{a}><{b}>", "</{b}>"), ("", " = ", ""))  # fmt: skip
NEXT = {"+": ("plus {b}", "add {b}", "{b} more"), "-": ("minus {b}", "take {b} away", "{b} less"),
        "*": ("times {b}", "{b} times that"), "/": ("divided by {b}", "by {b}")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given(Sum):
    """A sum whose result somebody gave."""

    given: int

    @property
    def result(self) -> int:
        return self.given


@dataclass(frozen=True)
class Settings:
    """What makes the base; the same numbers give the same weights on the same machine."""

    base: str = "weights/tiny_base"
    seed: int = 0
    steps: int = 1000
    batch_rows: int = 16
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 20
    word_weight: float = 0.1  # of a token that is neither number nor sign


def draw(rng: random.Random, split: str = "train") -> tuple[Story, int]:
    """Return (a story of the split, how many times as large its quantities are)."""
    while True:
        factor = 1 if rng.random() < USUAL else rng.randint(2, LARGEST_FACTOR)
        story = tell(rng, rng.choice((2, 3, 4)), factor)
        if split_of(story.question) == split:
            return story, factor


def invented(rng: random.Random, story: Story) -> list[Given] | None:
    """Return the sums with results drawn at random, which later sums go on from.

    None where a result on the way is also a number of the question: then nobody could tell which
    of the two a later sum takes.

    >>> sums = (Sum(21, "*", 5, ()), Sum(105, "-", 40, ()))
    >>> rng, told = random.Random(0), Story("21 boxes of 5, 40 are sold", sums, "", {})
    >>> [f"{s.left} {s.sign} {s.right} = {s.result}" for s in invented(rng, told)]
    ['21 * 5 = 964', '964 - 40 = 59']
    """
    told, changed = set(re.findall(r"\d+", story.question)), dict[int, int]()
    if any(str(s.result) in told for s in story.sums[:-1]):
        return None
    made = []
    for s in story.sums:
        left, right = changed.get(s.left, s.left), changed.get(s.right, s.right)
        digits = len(str(s.result))
        changed[s.result] = rng.randint(10 ** (digits - 1), 10**digits - 1)
        made.append(Given(left, s.sign, right, s.labels, changed[s.result]))
    return made


def chain(rng: random.Random) -> tuple[str, list[Given]]:
    """Return (question, sums): bare sums that go on from one another, with invented results.

    They are the densest text to learn copying from: almost every digit of the reply is one.
    """
    value = number(rng, 1, 4)
    told, sums = [str(value)], list[Given]()
    for _ in range(rng.randint(1, 3)):
        sign, right = rng.choice("+-*/"), number(rng, 1, 3)
        sums.append(Given(value, sign, right, ("",), number(rng, 1, 4)))
        told.append(rng.choice(NEXT[sign]).format(b=right))
        value = sums[-1].result
    return ", ".join(told), sums


def worked(rng: random.Random, words: dict, sums: Sequence[Sum], learned: bool) -> list:
    """Return a reply in pieces: (text, whether it is learned). learned: whether results are.

    words: of the story, for an opening; none for bare sums.
    """
    a, b = rng.sample(TAGS, 2)
    before, between, behind = (mark.format(a=a, b=b) for mark in rng.choice(MARKS))
    numbering, labelled = rng.choice(NUMBERINGS), bool(words) and rng.random() < 0.8
    pieces, text = list[tuple[str, bool]](), ""
    if words and rng.random() < 0.2:
        text = rng.choice(OPENINGS).format(**words) + "\n"
    for i, s in enumerate(sums, 1):
        order = ORDERS[0] if i == 1 else rng.choice(ORDERS[1:])
        text += numbering.format(i=i, order=order) + (f"{s.labels[0]}: " if labelled else "")
        text += f"{before}{s.left} {s.sign} {s.right}{between}"
        pieces += [(text, True), (str(s.result), learned)]
        text = behind + ("\n" if i < len(sums) else "")
    closing = "\n" + rng.choice(CLOSINGS).format(t=sums[-1].result)
    return [*pieces, (text + closing, True)]


def reply(rng: random.Random, bare: bool) -> tuple[str, list]:
    """Return (question, the reply in pieces) of bare sums or of a story."""
    if bare:
        question, chained = chain(rng)
        return question, worked(rng, {}, chained, learned=False)
    story, factor = draw(rng)
    made = invented(rng, story) if factor > 1 else None
    sums: Sequence[Sum] = made or story.sums
    return story.question, worked(rng, story.words, sums, learned=factor == 1)


def batch(rng: random.Random, tokenizer, rows: int, weights_of, bare: bool):
    """Return (ids [rows, T], weights [rows, T]) of stories or of CHAINS times as many bare sums.

    weights_of [V]: of a token that is learned.
    """
    from rlm.tiny.base import padded

    made = []
    for _ in range(rows * CHAINS if bare else rows):
        question, pieces = reply(rng, bare)
        document = chat(question, "".join(text for text, _ in pieces))
        learned = [False] * document.given
        for text, flag in pieces:
            learned += [flag] * len(text)
        learned += [True] * (len(document.text) - len(learned))
        encoded = tokenizer(document.text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        made.append((ids, [
            float(weights_of[id]) if learned[end - 1] else 0.0
            for id, (_, end) in zip(ids, offsets, strict=True)
        ]))  # fmt: skip
    return padded(made, tokenizer.pad_token_id)


def batches(tokenizer, settings: Settings):
    """Yield what `batch` returns, without end."""
    from rlm.tiny.base import token_weights

    table = token_weights(tokenizer, settings.word_weight)
    rng = random.Random(derive("tiny tool texts", settings.seed))
    while True:
        yield batch(rng, tokenizer, settings.batch_rows, table, bare=True)
        yield batch(rng, tokenizer, settings.batch_rows, table, bare=False)


def score(model, tokenizer, seed: int, stories: int = 50) -> dict[str, float]:
    """Return shares of held-out stories with large numbers, 0 to 1.

    copied: of next sums and last numbers after results that were given, those wholly right.
    computed: of results, those that the model itself writes right.
    """
    from rlm.engine.engine import Engine, Sampling
    from rlm.records import Prompt

    rng = random.Random(derive("tiny tool score", seed))
    prompts, wanted, kinds = [], [], []
    for _ in range(stories):
        story, factor = draw(rng, "validation")
        while factor < 5:
            story, factor = draw(rng, "validation")
        told = ""
        for i, s in enumerate(story.sums):
            head = f"{i + 1}. {s.labels[0]}: <code>"
            told += head
            prompts.append(told)
            wanted.append(f"{s.left} {s.sign} {s.right}</code>")
            kinds.append("copied")
            told += f"{s.left} {s.sign} {s.right}</code><em>"
            prompts.append(told)
            wanted.append(f"{s.result}</em>")
            kinds.append("computed")
            told += f"{s.result}</em>\n"
        prompts.append(told)
        wanted.append(f"{story.sums[-1].result}")
        kinds.append("copied")
        for place in range(len(prompts) - 2 * len(story.sums) - 1, len(prompts)):
            prompts[place] = chat(story.question, prompts[place]).text.removesuffix("<|im_end|>\n")
    ids = [Prompt(tokenizer(text, add_special_tokens=False).input_ids) for text in prompts]
    greedy = Sampling(max_tokens=24, temperature=0.0)
    said = Engine(model, tokenizer).generate(ids, 1, greedy, seed=0)
    right = [row[0].text.startswith(w) for row, w in zip(said, wanted, strict=True)]
    return {
        kind: sum(r for r, k in zip(right, kinds, strict=True) if k == kind) / kinds.count(kind)
        for kind in ("copied", "computed")
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line: a flag for each field of Settings."""

    def scores(model, tokenizer, settings) -> dict[str, float]:
        return score(model, tokenizer, settings.seed)

    output = "weights/tiny_tool_base"
    return run(
        Recipe("rlm.tiny.tool_base", __doc__, output, Settings(), batches, scores), arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
