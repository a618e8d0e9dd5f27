r"""A process of its own that says whether two mathematical expressions are equal, by Math-Verify.

    python -P rlm/answers/math_worker.py SECONDS BYTES

It is started by `rlm.answers.math_pool`. First it writes a line {"ready": ...}. Then for each line
{"gold": LaTeX, "answer": LaTeX} that it reads it writes one {"equal": true | false | null,
"gold_read": bool, "answer_read": bool, "last": bool}; null where memory was short, last where the
process ends now and another has to take over. A verdict that takes more than
SECONDS of processor time ends the process (an alarm whose default action no library can catch or
put off), and it cannot have more than BYTES of memory. It imports nothing of this project.
"""

import json
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

DIGITS = 50  # with which numbers are calculated where no exact form was found
CLOSE, ZERO = 1e-20, 1e-100  # two such numbers are equal up to this share; this is nothing
FIRST = (
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"x^2+2x+1", "(x+1)^2"),
    (r"\{1, 2\pi\}", r"[0,3)\cup(4,\infty)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "x=5"),
)
KEPT = 4096  # expressions whose reading is remembered: a group has one gold


def limit_memory(count: int) -> None:
    """Let the process have no more than so many bytes, and write no file."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (count, count))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def resident_bytes() -> int:
    """Return the memory that the process has now; where that is not told, the most it has had.

    On Linux the latter would begin with that of the process that started this one, getrusage(2).
    """
    with suppress(OSError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def let_memory_errors_through() -> None:
    """Let a MemoryError reach us: Math-Verify catches every Exception, and it would be a "no"."""
    from latex2sympy2_extended import latex2sympy2, math_normalization
    from math_verify import grader, parser

    harmless = tuple(kind for kind in Exception.__subclasses__() if kind is not MemoryError)
    for module in (latex2sympy2, math_normalization, grader, parser):
        vars(module)["Exception"] = harmless


def compare_only_what_has_solutions() -> None:
    """Stop Math-Verify from calling equations equal for having no solution, both of them."""
    from math_verify import grader
    from sympy import solve

    compare = grader.sympy_solve_and_compare

    def same_solutions(gold, answer, *precision):
        return bool(solve(gold, gold.free_symbols)) and compare(gold, answer, *precision)

    grader.sympy_solve_and_compare = same_solutions


def read_quickly() -> None:
    """Make the reader of LaTeX several times as fast, with the same result.

    Numbers are made without Python's eval, decimals as the fractions that were written. ANTLR's
    SLL prediction gives what its full one gives wherever it finds no fault; else that is asked.
    """
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
    from sympy import Integer, Number, Rational

    make, parse = _Latex2Sympy.create_parser, _Latex2Sympy.parse

    def create_parser(self, latex: str):
        parser = make(self, latex)
        if self.quick:
            parser._interp.predictionMode = PredictionMode.SLL
        return parser

    def parse_twice(self, latex: str):
        self.quick = True
        try:
            return parse(self, latex)
        except MemoryError:
            raise
        except Exception:
            self.quick = False
            return parse(self, latex)

    def parse_number(self, text: str):
        text = text.replace(",", "")
        if text.isascii() and text.isdecimal():
            return Integer(int(text))
        whole, point, decimals = text.partition(".")
        plain = text.isascii() and point and (whole + decimals).isdecimal()
        return Rational(text) if plain else Number(text)

    _Latex2Sympy.create_parser, _Latex2Sympy.parse = create_parser, parse_twice
    _Latex2Sympy.parse_number = parse_number


class Judge:
    """Reads LaTeX and compares it."""

    def __init__(self):
        from latex2sympy2_extended.math_normalization import NormalizationConfig
        from math_verify.parser import LatexExtractionConfig, parse

        logging.disable(logging.CRITICAL)
        let_memory_errors_through()
        compare_only_what_has_solutions()
        read_quickly()
        # Only the reader of LaTeX: that of plain expressions hands its text to Python's eval.
        spelling = NormalizationConfig(
            basic_latex=True,
            units=False,  # 3t is not 3 tons
            malformed_operators=True,
            nits=True,
            boxed="none",
            equations=False,
        )
        self._how = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)]
        self._parse = parse
        self.read = lru_cache(KEPT)(self._read)

    def _read(self, latex: str):
        """Return the sympy object, None if there is none to be read."""
        options = {"parsing_timeout": None, "fallback_mode": "no_fallback"}
        found = self._parse(f"${latex}$", extraction_config=self._how, **options)
        return found[0] if found else None

    def verdict(self, gold: str, answer: str) -> dict:
        from math_verify import verify

        first, second = self.read(gold), self.read(answer)
        read = first is not None, second is not None
        # Numbers that differ are told apart quickly, and 10^{-60} from 10^{-61}: Math-Verify takes
        # a difference for nothing that is small by itself.
        equal = all(read) and not far_apart(first, second)
        if equal:
            equal = verify(first, second, numeric_precision=DIGITS, timeout_seconds=None)
        return {"equal": bool(equal), "gold_read": read[0], "answer_read": read[1]}

    def safe_verdict(self, gold: str, answer: str) -> dict:
        """Return the verdict; one that memory was too short for is null."""
        try:
            return self.verdict(gold, answer)
        except MemoryError:
            return {"equal": None, "gold_read": False, "answer_read": False}
        except Exception:  # whatever sympy trips over in a hostile text: it is not equal
            return {"equal": False, "gold_read": False, "answer_read": False}


def far_apart(first, second) -> bool:
    """Return whether these are two numbers, and differ."""
    from sympy import Expr

    if not all(isinstance(x, Expr) and not x.free_symbols for x in (first, second)):
        return False
    a, b = first.evalf(DIGITS), second.evalf(DIGITS)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    difference, size = abs(a - b), max(abs(a), abs(b))
    return bool(difference > ZERO and difference > CLOSE * size)


def main(seconds: float, most_bytes: int) -> None:
    limit_memory(most_bytes)
    # Whatever a library prints must not be taken for a verdict.
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)
    judge = Judge()
    for gold, answer in FIRST:  # what is made at the first use is made now
        judge.safe_verdict(gold, answer)
    print(json.dumps({"ready": True}), file=out)
    timed = hasattr(signal, "setitimer")
    for line in sys.stdin:
        task = json.loads(line)
        if timed:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)
        found = judge.safe_verdict(task["gold"], task["answer"])
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        # sympy's caches grow, and after a MemoryError nothing is sure: a fresh one takes over.
        last = found["equal"] is None or resident_bytes() > most_bytes // 2
        print(json.dumps(found | {"last": last}), file=out)
        if last:
            return


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
