"""What is rewarded: small functions, and a table of them by name.

A reward looks at one finished turn and returns a number, 1.0 for all that it asks for:

    def short(example, text, format_name):
        return float(len(text) <= 400)  # 1.0 for at most 400 characters

To add your own, write such a function in a file of your own and give it a weight:

    python train_grpo.py --reward-file my_rewards.py --rewards correctness=1,short=0.1

(weight 0: it is logged and earns nothing), or write it here and put it into REWARDS at the end of
this file. `example` has the question, the gold answer and its kind, `text` is the whole assistant
turn, tags included. A function (examples, texts, format_name) takes all completions of a step at
once and returns a list. None: the reward does not apply to that example. A reward may not raise:
an exception stops the run and names the example.

How rewards are called and added up stands in `rlm/rollouts/scoring.py`, how an answer is read and
compared in `rlm/answers/kinds.py`, the tags in `rlm/answers/formats.py`.
"""

import math
import re
from collections.abc import Mapping

from rlm.answers.formats import get_format, parse
from rlm.answers.kinds import Verdict, judge
from rlm.answers.reading import equal, read_answer, read_value
from rlm.errors import InputError
from rlm.records import Example, Rollout, Score
from rlm.rollouts.scoring import NO_LIMITS, Function, Limits, load_file, load_named, score_all


def correctness(completion: str, gold: str, format: str, kind: str = "number") -> float:
    """1.0 if the completion states exactly the gold's value, else 0.0.

    Never raises on a completion. ValueError for a gold that cannot be read as that kind of answer.
    """
    return float(judge(Example("", "", gold, kind=kind), completion, format).right or False)


def correct(
    example: Example, text: str, format_name: str, *, verdict: Verdict | None = None
) -> float:
    """1.0 for the right final answer, of whatever kind. The only reward by default.

    verdict: on the answer, if it is known already.
    """
    verdict = verdict or judge(example, text, format_name)
    return float(verdict.right or False)


def format_strict(example: Example, text: str, format_name: str) -> float:
    """1.0 for exactly the shape that SFT teaches; nothing but newlines around the tags."""
    return float(parse(text, get_format(format_name)).strict)


def format_soft(example: Example, text: str, format_name: str) -> float:
    """1.0 if each tag stands there once and in order, whatever else is written."""
    return float(parse(text, get_format(format_name)).soft)


def tag_count(example: Example, text: str, format_name: str) -> float:
    """An equal share for each tag that stands exactly once, minus 0.001 a character after the end.

    The end is the last tag, or the first line of the answer where nothing closes the answer.
    The XML recipe pays 0.125 for each of its 4 tags: that is this reward at weight 0.5.
    Between 0.0 and 1.0; a format without tags earns 0.0.
    """
    form = get_format(format_name)
    if not form.tags:
        return 0.0
    share = sum(text.count(tag) == 1 for tag in form.tags) / len(form.tags)
    _, closed, rest = text.rpartition(form.tags[-1])
    after = rest if form.answer_close else rest.strip().partition("\n")[2]
    penalty = 0.001 * len(after.strip()) if closed else 0.0
    return max(0.0, share - penalty)


def integer(example: Example, text: str, format_name: str) -> float:
    """1.0 if the stated answer is a whole number, right or wrong ("42.0" is one, "42%" is not)."""
    answer = read_answer(text, format_name)
    return float(answer.value is not None and answer.value.denominator == 1 and not answer.percent)


STEP = re.compile(r"^[ \t]*+(?:[Ss]tep )?([123])[.:)](?=\s)", re.MULTILINE)


def steps(example: Example, text: str, format_name: str) -> float:
    """The share of the steps 1., 2. and 3. that begin a line of the reasoning."""
    reasoning = parse(text, get_format(format_name)).reasoning or ""
    return len(set(STEP.findall(reasoning))) / 3


CHECK = re.compile(r"\b(?:verif(?:y|ied|ication)|check(?:ed|ing)?|confirm(?:ed)?)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
RESULT = re.compile(r"=|\b(?:is|equals|gives|makes)\b")


def verification(example: Example, text: str, format_name: str) -> float:
    """1.0 if the reasoning checks the answer: "Verification: 23 + 15 + 8 is indeed 46."

    Asked for is a word of checking and then, within 400 characters, a sentence that states
    something ("... is", "... =") and whose result equals the turn's own final answer.
    """
    answer = read_answer(text, format_name)
    reasoning = parse(text, get_format(format_name)).reasoning or ""
    checks = list(CHECK.finditer(reasoning))[-3:]  # a check comes last; bounds the work
    for check in checks:
        for sentence in SENTENCE_END.split(reasoning[check.end() : check.end() + 400]):
            _, *results = RESULT.split(sentence)
            if any(equal(read_value(result), answer) for result in results):
                return 1.0
    return 0.0


def length(
    example: Example,
    text: str,
    format_name: str,
    *,
    rollout: Rollout,
    max_tokens: int,
    overlong_tokens: int,
) -> float:
    """0.0 up to max_tokens - overlong_tokens, then falling evenly to -1.0 at max_tokens.

    DAPO's soft overlong punishment, arXiv:2503.14476 eq. 13, with L_max = max_tokens and
    L_cache = overlong_tokens (--overlong-tokens, by default a fifth, as there: 4096 of 20480).
    """
    if not max_tokens:  # nobody said what is too long
        return 0.0
    free = max_tokens - overlong_tokens
    return max(-1.0, min(0.0, (free - rollout.length) / overlong_tokens))


NGRAM = 4  # words


def repetition(example: Example, text: str, format_name: str) -> float:
    """Minus the share of 4-word runs that stood in the turn before: 0.0 for none, towards -1.0.

    An n-gram repetition penalty as that of arXiv:2502.03373, as one number for the whole turn.
    """
    words = text.split()
    runs = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


REWARDS: dict[str, Function] = {
    "correctness": correct,
    "format_strict": format_strict,
    "format_soft": format_soft,
    "tag_count": tag_count,
    "integer": integer,
    "steps": steps,
    "verification": verification,
}
# They take away instead of giving: from 0.0 down to -1.0. Named and weighed as rewards are.
PENALTIES: dict[str, Function] = {"length": length, "repetition": repetition}


def known(file: str | None = None) -> dict[str, Function]:
    """Return the rewards that can be named: of REWARDS, PENALTIES and the file."""
    own = load_file(file) if file else {}
    ours = REWARDS | PENALTIES
    if both := sorted(set(own) & set(ours)):
        raise InputError(f"--reward-file {file}: {', '.join(both)} is a reward of rewards.py "
                         "already; give it another name")  # fmt: skip
    return ours | own


def functions(names: Mapping[str, float], file: str | None = None) -> dict[str, Function]:
    """Return the named rewards: those of `known`, or `package.module:function`.

    ValueError for an unknown name; InputError for a file or a module that cannot be used, and for
    a file that nothing is taken of.
    """
    here, found = known(file), {}
    own = [name for name in here if name not in REWARDS | PENALTIES]
    if file and not set(own) & set(names):
        raise InputError(f"--reward-file {file}: none of its rewards is weighed; add one to "
                         f"--rewards, as in correctness=1,{own[0]}=0.1")  # fmt: skip
    for name in names:
        if name not in here and ":" not in name:
            raise ValueError(f"unknown reward {name!r}: known are {', '.join(here)}; choose among "
                             "them, or give a file of your own by --reward-file")  # fmt: skip
        found[name] = here[name] if name in here else load_named(name)
    return found


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError unless every name is known, every weight finite, and one of them not zero."""
    functions(weights)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"weight {weight!r} of reward {name}: give it as a number")
        if not math.isfinite(weight):
            raise ValueError(f"weight {weight} of reward {name}: it must be finite, such as 1.0")
    if not any(weights.values()):
        raise ValueError(
            f"reward weights {dict(weights)}: at least one must differ from 0, "
            f"or there is nothing to learn; known are {', '.join(known())}"
        )


def score(
    example: Example,
    rollout: Rollout,
    format_name: str,
    weights: Mapping[str, float],
    limits: Limits = NO_LIMITS,
) -> Score:
    """What a rollout earned: each reward named in `weights`, and their weighted sum.

    Score.reason says why no answer could be read (`rlm.answers.reading.REASONS`), None if one was.
    ValueError for an unknown reward. RuntimeError, naming the reward and the example, when a
    reward raises or returns something that is not a finite number.
    """
    check_weights(weights)
    named = functions(weights)
    return score_all([example], [rollout], format_name, weights, named, limits)[0]
