"""The plain text that the tiny base learns from: sums, worked questions in many wordings, filler.

No output format ever occurs in it: the base can do the work but has never seen a tag of
rlm/answers/formats.py. What decides the base's quality is the number of wordings, so that
fine-tuning only has to find the format. Every document is drawn with its own seed.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from rlm.data import problems
from rlm.data.problems import LARGEST, Sum, number
from rlm.data.splits import split_of
from rlm.seeds import derive

KINDS = {"facts": 0.13, "additions": 0.38, "word_problems": 0.47, "filler": 0.02}

# Not one tag of an output format, but the signs that tags are made of.
TAGS = ("b", "i", "p", "em", "ul", "li", "code", "table_row")
WORDS = (
    "first", "second", "third", "next", "then", "after", "before", "last", "start", "end", "step",
    "number", "numbers", "sum", "total", "result", "answer", "solution", "reasoning", "working",
    "out", "think", "calculate", "need", "check", "verification", "indeed", "adding", "is", "are",
    "was", "it", "not", "in", "for", "with", "of", "the", "a", "list", "order", "line", "page",
    "word", "text", "question", "START", "END", "SOLUTION", "WORKING", "a", "big", "small",
    "long", "short", "time", "day", "week", "now", "here", "there",
)  # fmt: skip

SUM_QUESTIONS = (
    *problems.ADDITION_QUESTIONS, "Calculate {a} + {b} + {c}", "Find {a} + {b} + {c}.",
    "Add up {a}, {b}, and {c}.", "What do {a}, {b} and {c} make together?",
    "what is {a} + {b} + {c}", "Please add {a}, {b} and {c}.", "{a} + {b} + {c}",
    "What's {a} + {b} + {c}?", "Sum: {a} + {b} + {c}", "{a} + {b} + {c} =", "{a}+{b}+{c}=?",
)  # fmt: skip
PAIR_QUESTIONS = ("Calculate {a} {s} {b}", "What is {a} {s} {b}?", "{a} {s} {b} = ?", "{a}{s}{b}",
                  "How much is {a} {s} {b}?", "Compute {a} {s} {b}.")  # fmt: skip
SUM_OPENINGS = (
    "We add {a}, {b}, and {c}.", "I need to calculate the sum of {a}, {b}, and {c}.",
    "I need to calculate the sum of {a}, {b}, and {c}.", "The numbers are {a}, {b} and {c}.",
    "Let me add {a}, {b} and {c}.", "To find {a} + {b} + {c}, go step by step.",
)  # fmt: skip
SUM_LABELS = (
    ("Adding the first two", "Start with", "The first two", "Adding the first two", "Both"),
    ("Adding the third", "And the last", "With the third", "Adding the third", "All three"),
)
CHECKS = ("Verification: {q} is indeed {t}.", "Verification: {q} is indeed {t}.",
          "Check: {q} = {t}.", "So {q} is {t}.")  # fmt: skip
OPENINGS = ("We go step by step.", "Let me count the {it}.", "This takes some steps.",
            "I need to find the number asked for.", "Let us see.")  # fmt: skip
# The bare number comes often, on a line of its own: an answer is copied from the working so.
CLOSINGS = ("The answer is {t}.", "{t}", "{t}", "{t}", "{t}", "Total: {t}", "Total:\n{t}",
            "So it is {t}.", "Answer: {t}", "That makes {t}.")  # fmt: skip
NUMBERINGS = ("{i}. ", "{i}. ", "{i}. ", "{i}) ", "- ", "", "", "Step {i}: ", "{order}")
ORDERS = ("First, ", "Then ", "Next, ", "Now ", "After that ", "Then ", "Next, ", "Finally ")
AT_ONCE = 0.05  # share of worked questions that are answered without the working


@dataclass(frozen=True, slots=True)
class Document:
    """One text; only what comes after its first `given` characters is learned."""

    text: str
    given: int


def chat(question: str, reply: str) -> Document:
    """A turn of each side in the tokenizer's chat template; the reply is learned."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return Document(f"{prompt}{reply}<|im_end|>\n", len(prompt))


def document(kind: str, seed: int, index: int) -> Document:
    """The document of that kind and place; the same arguments give the same one."""
    rng = Random(derive("corpus", kind, seed, index))
    return MAKERS[kind](rng)


def fingerprint(seed: int, n: int = 2_000) -> str:
    """The sha256 of the first n documents of each kind, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for kind in KINDS:
        for index in range(n):
            made = document(kind, seed, index)
            digest.update(f"{made.given}\x1f{made.text}\x1e".encode())
    return digest.hexdigest()


def texts(seed: int, n: int) -> Iterable[str]:
    """n texts in the mix of KINDS, without the marks of the chat: to build a tokenizer from."""
    for kind, share in KINDS.items():
        for index in range(round(n * share)):
            text = document(kind, seed, index).text
            yield text.replace("<|im_start|>", "").replace("<|im_end|>", "")


def fact(rng: Random) -> Sum:
    """A sum, difference, product or quotient of the sizes that the questions need."""
    sign = rng.choices("+-*/", (50, 20, 15, 15))[0]
    if sign == "+":
        a = rng.randint(1, 1998) if rng.random() < 0.5 else number(rng, 1, 3)
        return Sum(a, sign, number(rng, 1, 3), ())
    if sign == "-":
        a = rng.randint(3, LARGEST)
        return Sum(a, sign, rng.randint(1, min(a - 1, rng.choice((60, LARGEST)))), ())
    a = rng.randint(2, 12)
    b = rng.randint(2, min(99, LARGEST // a))
    if sign == "/":
        return Sum(a * b, sign, a, ())
    a, b = rng.sample((a, b), 2)
    return Sum(a, sign, b, ())


def _held_in(draw: Callable, question: Callable):
    """What is drawn, once its question is not one of those held out for evaluation."""
    while True:
        drawn = draw()
        if split_of(question(drawn)) == "train":
            return drawn


def _facts(rng: Random) -> Document:
    s = fact(rng)
    names = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
    shapes = [f"{s.left} {s.sign} {s.right} ="] * 8
    shapes += [f"{s.left}{s.sign}{s.right}=", f"{s.left} {names[s.sign]} {s.right} is"]
    start = rng.choice(shapes)
    gap = "" if start.endswith("=") and " " not in start else " "
    return Document(f"{start}{gap}{s.result}\n", len(start))


def _additions(rng: Random) -> Document:
    if rng.random() < 0.12:
        s = fact(rng)
        question = rng.choice(PAIR_QUESTIONS).format(a=s.left, s=s.sign, b=s.right)
        reply = rng.choice((f"{s.left} {s.sign} {s.right} = {s.result}", *CLOSINGS))
        return chat(question, reply.format(t=s.result))
    low = rng.choice((1, 1, 2, 3))  # long numbers are what a copy and a carry go wrong in
    a, b, c = _held_in(lambda: [number(rng, low, 3) for _ in range(3)],
                       lambda numbers: problems.addition_question(*numbers))  # fmt: skip
    words = {"a": a, "b": b, "c": c, "t": a + b + c, "q": f"{a} + {b} + {c}"}
    sums = (Sum(a, "+", b, SUM_LABELS[0]), Sum(a + b, "+", c, SUM_LABELS[1]))
    question = rng.choice(SUM_QUESTIONS).format(**words)
    return chat(question, _reply(rng, sums, words, SUM_OPENINGS, ("{q} = {t}", "{q} is {t}.")))


def _word_problems(rng: Random) -> Document:
    story = _held_in(lambda: problems.tell(rng, rng.choice((1, 2, 2, 2, 3, 3, 3, 4, 4, 4))),
                     lambda told: told.question)  # fmt: skip
    words = story.words | {"t": story.sums[-1].result}
    return chat(story.question, _reply(rng, story.sums, words, OPENINGS, ()))


def _reply(rng: Random, sums, words: dict, openings, at_once) -> str:
    """A worked answer in one of many wordings, now and then an answer without the working."""
    if rng.random() < AT_ONCE:
        return rng.choice((*at_once, *CLOSINGS)).format(**words)
    numbering = rng.choice(NUMBERINGS)
    line_break = "\n" if numbering not in ("", "{order}") or rng.random() < 0.6 else ". "
    # Share of the steps that say what they are for.
    labelled = rng.choice((0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0))
    first_label = rng.random() < 0.5  # all steps in the wording of demonstrations
    spoken = rng.random() < 0.1
    lines = []
    for i, s in enumerate(sums, 1):
        order = ORDERS[0] if i == 1 else rng.choice(ORDERS[1:])
        label = s.labels[0] if first_label else rng.choice(s.labels)
        label = f"{label}: " if rng.random() < labelled else ""
        verb = "is" if spoken else "="
        sum_text = f"{s.left} {s.sign} {s.right} {verb} {s.result}"
        lines.append(numbering.format(i=i, order=order) + label + sum_text)
    if "q" in words and rng.random() < 0.5:
        place = numbering.format(i=len(lines) + 1, order="")
        lines.append(place + rng.choice(CHECKS).format(**words))
    if rng.random() < 0.4:
        lines.insert(0, rng.choice(openings).format(**words))
    if rng.random() < 0.7:
        lines.append(rng.choice(CLOSINGS).format(**words))
    text = lines[0]
    for line in lines[1:]:
        # A line that already ends in a full stop gets no second one.
        text += (line_break.lstrip(".") if text.endswith(".") else line_break) + line
    return text


def _filler(rng: Random) -> Document:
    """Words, numbers, lists and marks without sense: they keep every piece of text alive."""
    pieces = []
    for _ in range(rng.randint(5, 14)):
        word, tag = rng.choice(WORDS), rng.choice(TAGS)
        pieces.append(rng.choices(
            (word, word.capitalize(), str(number(rng, 1, 4)), f"{rng.randint(1, 9)}. {word}:",
             f"<{tag}>{word}</{tag}>", f"<{tag}>\n{word}\n</{tag}>\n", f"{word},", f"{word}.\n"),
            (50, 10, 10, 6, 6, 6, 6, 6),
        )[0])  # fmt: skip
    return Document(" ".join(pieces) + "\n", 0)


MAKERS: dict[str, Callable[[Random], Document]] = {
    "facts": _facts,
    "additions": _additions,
    "word_problems": _word_problems,
    "filler": _filler,
}
