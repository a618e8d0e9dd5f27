"""What completions earn: reward functions called and checked, and their weighted sum.

A reward function takes one completion or all of a step:

    def brevity(example, text, format_name) -> float | None
    def diverse(examples, texts, format_name) -> list[float | None]

Which of the two it is, the names of its first two parameters say. None: the reward does not apply
to that example (one of another kind, say), and earns nothing. Behind a `*` a function may ask for
more by name (`EXTRAS`): a completion's verdict, its rollout with the tokens, the longest length.

A completion that was cut off earns nothing, whatever stands in it: rewards that would add to its
total are 0, those that take from it stay. It does not know which rewards there are: rewards.py at
the root has them, `load_file` and `load_named` find those of the user.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from rlm.answers.formats import turn_of
from rlm.answers.kinds import judge_all, last_statements
from rlm.cli.python_file import error_told, public_functions
from rlm.errors import InputError, RunError
from rlm.records import Example, Rollout, Score

Function = Callable[..., Any]
SHAPE = "(example, text, format_name), or (examples, texts, format_name) for all of a step"
# What a function may ask for by name, one for each completion or the list of them.
EXTRAS = {
    "verdict": "`rlm.answers.kinds.Verdict` on the completion",
    "rollout": "`rlm.records.Rollout`: its tokens, and whether it was cut off",
    "max_tokens": "the most tokens that are sampled",
    "overlong_tokens": "how many of them, at the end, cost something (--overlong-tokens)",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """max_tokens: of a completion. overlong_tokens: the last of these cost; 0 for a fifth."""

    max_tokens: int = 0
    overlong_tokens: int = 0

    @property
    def soft(self) -> int:
        return self.overlong_tokens or max(1, self.max_tokens // 5)


NO_LIMITS = Limits()


def takes_all(name: str, function: Function) -> bool:
    """Return whether a reward function takes all completions of a step at once.

    InputError if it can be called in neither way.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise InputError(f"reward {name}: not a function with a signature; write {SHAPE}") from None
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 3 or (len(places) < 3 and not several):
        given = ", ".join(p.name for p in parameters)
        raise InputError(f"reward {name}: takes ({given}); write {SHAPE}")
    for parameter in parameters:
        asks = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if asks and parameter.name.removesuffix("s") not in EXTRAS and parameter.name not in EXTRAS:
            raise InputError(
                f"reward {name}: asks for {parameter.name!r}; known are {', '.join(EXTRAS)}"
            )
    return [p.name for p in places[:2]] == ["examples", "texts"]


def score_all(
    examples: Sequence[Example],
    rollouts: Sequence[Rollout],
    format_name: str,
    weights: Mapping[str, float],
    functions: Mapping[str, Function],
    limits: Limits = NO_LIMITS,
) -> list[Score]:
    """Return what each rollout earned: the rewards named in `weights`, and their weighted sum.

    examples: of each rollout its own. Their fact lenient_fraction is 1.0 where the last statement
    is right, whatever the format: it earns nothing. RuntimeError, naming the reward and an
    example, when a function raises, returns too many or too few, or no finite numbers.
    """
    texts = [turn_of(rollout.text) for rollout in rollouts]
    finishes = [rollout.finish for rollout in rollouts]
    own = [turn_of(rollout.own_text) for rollout in rollouts]  # a tool's result is no answer
    verdicts = judge_all(examples, own, format_name, finishes=finishes)
    lasts = last_statements(examples, own)
    extras = {
        "verdict": verdicts,
        "rollout": rollouts,
        "max_tokens": limits.max_tokens,
        "overlong_tokens": limits.soft,
    }
    columns = {
        name: _column(name, functions[name], examples, texts, format_name, extras)
        for name in weights
    }
    made = []
    for i, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True)):
        cut = rollout.finish == "length"
        parts = {}
        for name, column in columns.items():
            if (value := column[i]) is not None:
                gains = value > 0 if weights[name] == 0 else weights[name] * value > 0
                parts[name] = 0.0 if cut and gains else value
        total = sum(weights[name] * part for name, part in parts.items())
        judged, last = verdict.right is not None, lasts[i]
        facts = {"lenient_fraction": float(bool(last and last.right))}
        made.append(Score(total, parts, verdict.reason if judged else None, facts, judged=judged))
    return made


def _column(
    name: str,
    function: Function,
    examples: Sequence[Example],
    texts: Sequence[str],
    format_name: str,
    extras: dict[str, Any],
) -> list[float | None]:
    """Return the values of one reward for all completions, checked."""
    together = takes_all(name, function)
    asked = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    if together:
        more = {n: extras[key] for n in asked if (key := _key(n)) in extras}
        try:
            values = list(function(list(examples), list(texts), format_name, **more))
        except Exception as error:
            raise RuntimeError(
                f"reward {name} failed on the completions of examples {_ids(examples)}: "
                f"{error_told(error)}"
            ) from error
        if len(values) != len(texts):
            raise RunError(
                f"reward {name} returned {len(values)} values for {len(texts)} completions, of "
                f"examples {_ids(examples)}; return one for each, in order"
            )
    else:
        values = []
        for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
            more = {n: _of(extras[_key(n)], i) for n in asked if _key(n) in extras}
            try:
                values.append(function(example, text, format_name, **more))
            except Exception as error:
                raise RuntimeError(
                    f"reward {name} failed on example {example.id}: {error_told(error)}"
                ) from error
    return [_number(name, value, e) for value, e in zip(values, examples, strict=True)]


def _key(parameter: str) -> str:
    """Return the name in EXTRAS of what a parameter asks for: verdicts are several of verdict."""
    return parameter if parameter in EXTRAS else parameter.removesuffix("s")


def _of(extra, i: int):
    return extra if isinstance(extra, int) else extra[i]


def _ids(examples: Sequence[Example]) -> str:
    names = list(dict.fromkeys(example.id for example in examples))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _number(name: str, value, example: Example) -> float | None:
    """Return a reward as a float; RunError naming the example if it is no finite number."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except Exception:
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value)[:80]
        raise RunError(
            f"reward {name} returned {shown} on example {example.id}; return a finite number, or "
            "None where it does not apply"
        )
    return number


# Rewards of the user.


def load_file(path: str) -> dict[str, Function]:
    """Return the reward functions of a Python file: its public ones of the right shape, by name.

    The file is run, with all that it does. InputError if it is not there, fails, or has none.
    """
    public = public_functions("--reward-file", path, "reward")
    found: dict[str, Function] = {n: f for n, f in public.items() if _fits(n, f)}
    if not found:
        others = f"; {', '.join(public)} are of another shape" if public else ""
        raise InputError(f"--reward-file {path}: no reward in it{others}; write a function {SHAPE}")
    return found


def _fits(name: str, function: Function) -> bool:
    try:
        takes_all(name, function)
    except InputError:
        return False
    return True


def load_named(name: str) -> Function:
    """Return the function that `package.module:function` names; InputError if there is none."""
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        told = error_told(error)
        raise InputError(f"--rewards {name}: cannot import {module_name}: {told}") from None
    finally:
        sys.path.remove(folder)
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        have = ", ".join(n for n, f in vars(module).items() if isinstance(f, FunctionType))
        raise InputError(
            f"--rewards {name}: no function {attribute} in {module_name}; it has {have or 'none'}"
        )
    takes_all(name, function)
    return function
