"""Which instruction do pretrained models follow? Each format asked for in several ways.

    python benchmarks/real_prompts.py --model weights/smollm2 --task addition --digits 1-2
    python benchmarks/real_prompts.py --model FILE.gguf --task gsm8k --data DIR --questions 48

The questions are of the validation split, so that nothing is chosen by test questions; worked
examples are of the training split. Greedy. What is there already is not measured again. The
results go to benchmarks/results/real_prompts_<task>.json, and from there into docs/results.md
(benchmarks/tables.py).
"""

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT))

FORMATS = ("think", "xml", "solution")
PLACES = ("system", "user", "both")


def wordings(fmt) -> dict[str, str]:
    """Return the instructions that are compared, by name; they ask for the same shape.

    shape: what the formats have. one line: what think had before.
    """
    opener, closer = fmt.reasoning_open, fmt.reasoning_close
    margin = fmt.answer_margin
    around = f" between {fmt.answer_open} and {fmt.answer_close}" if fmt.answer_open else ""

    def shape(reasoning: str, answer: str) -> str:
        end = f"{fmt.answer_open}{margin}{answer}{margin}{fmt.answer_close}"
        return f"{opener}\n{reasoning}\n{closer}\n{end}"

    final = f"Then write the final answer{around}"
    work = (
        f"Solve the problem step by step. Write all steps between {opener} and {closer}. "
        f"After {closer} write only the final number{around}."
    )
    worked = shape(
        "3 boxes of 4 pens are 3 * 4 = 12 pens.\nWithout the 5 pens there are 12 - 5 = 7 pens.", "7"
    )
    return {
        "shape": (
            f"First reason step by step between {opener} and {closer}. {final}: a single number "
            f"on one line and nothing else.\nUse exactly this shape:\n"
            f"{shape('your reasoning', 'your answer')}"
        ),
        "one line": (
            f"First reason step by step between {opener} and {closer}. Then write the final "
            "answer on one line: a single number and nothing else.\nUse exactly this shape:\n"
            f"{shape('your reasoning', 'your answer')}"
        ),
        "respond": f"Respond in the following format:\n{shape('...', '...')}",
        "steps": work,
        "example": (
            f'{work}\n\nFor example, to the question "Tom has 3 boxes of 4 pens and gives 5 pens '
            f'away. How many pens are left?" the answer is:\n{worked}'
        ),
    }


def messages(question: str, instruction: str, place: str, examples: list[tuple[str, str]]) -> list:
    """Return the turns: the instruction at its place, worked examples, the question."""

    def asked(text: str) -> dict:
        told = f"{text}\n\n{instruction}" if place in ("user", "both") else text
        return {"role": "user", "content": told}

    turns = [{"role": "system", "content": instruction}] if place in ("system", "both") else []
    for before, answer in examples:
        turns += [asked(before), {"role": "assistant", "content": answer}]
    return [*turns, asked(question)]


def variants(chosen: dict[str, str]) -> list[tuple[str, str, str, int]]:
    """Return (format, wording, place, shots) of everything that is compared.

    chosen: by format, the wording whose worked examples are measured, "" for none of them.
    """
    found = [("plain", "shape", "system", 0), ("plain", "shape", "user", 0)]
    found += [("think", "one line", p, 0) for p in PLACES[:2]]
    for name in FORMATS:
        if w := chosen.get(name):
            found += [(name, w, "system", 1), (name, w, "system", 3), (name, w, "user", 1),
                      (name, w, "both", 0)]  # fmt: skip
        found += [(name, w, p, 0) for w in ("shape", "respond", "steps", "example")
                  for p in PLACES[:2]]  # fmt: skip
    return found


def measured(engine, tokenizer, questions, training, variant, max_tokens: int) -> dict:
    """Return the summary of one way to ask."""
    from rlm.answers import formats
    from rlm.engine.engine import Sampling
    from rlm.evaluation.measure import judge, summarise
    from rlm.models.prompts import token_ids
    from rlm.records import Prompt

    name, wording, place, shots = variant
    fmt = formats.get_format(name)
    told = fmt.instruction if name == "plain" else wordings(fmt)[wording]
    worked = [(e.question, formats.render(fmt, e.solution.strip(), e.gold))
              for e in training[:shots]]  # fmt: skip
    prompts = []
    for example in questions:
        turns = messages(example.question, told, place, worked)
        # Without a system turn some templates write one of their own; so it is in use as well.
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompts.append(Prompt(token_ids(tokenizer, text)))
    began = time.perf_counter()
    groups = engine.generate(prompts, 1, Sampling(max_tokens=max_tokens, temperature=0), seed=0)
    judged = [[judge(e, group[0], name)] for e, group in zip(questions, groups, strict=True)]
    rows = [group[0] for group in judged]
    summary = summarise("base", rows, judged, 1)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    summary["first"] = groups[0][0].text[:400]
    return summary


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a GGUF file, a folder, a name on the hub")
    parser.add_argument("--task", required=True, choices=("addition", "gsm8k"))
    parser.add_argument("--data", help="the folder of gsm8k")
    parser.add_argument("--digits", default="1-3", help="of additions")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--shots", nargs="*", default=[], metavar="FORMAT=WORDING",
                        help="measure both places and worked examples of these too")  # fmt: skip
    parser.add_argument("--only", nargs="*", help="formats")
    given = parser.parse_args()
    import data
    from rlm.engine.engine import Engine
    from rlm.models.policy import open_policy

    low, high = map(int, given.digits.split("-"))
    where: dict[str, Any] = {"data": given.data, "digits": (low, high)}
    many = None if given.task == "gsm8k" else 100
    questions = data.load_examples(given.task, "validation", n=given.questions, **where)
    training = data.load_examples(given.task, "train", n=many, **where)[:8]
    policy = open_policy(given.model, None, dtype=given.dtype)
    engine = Engine(policy.model, policy.tokenizer)
    path = RESULTS / f"real_prompts_{given.task}.json"
    kept = files.read_object(path) if path.exists() else {"command": [], "models": {}}
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = "python benchmarks/" + " ".join([Path(__file__).name, *words])
    name = Path(given.model).stem
    rows = kept["models"].setdefault(name, [])
    done = {(r["format"], r["wording"], r["place"], r["shots"]) for r in rows}
    chosen = dict(pair.split("=") for pair in given.shots)
    for variant in variants(chosen):
        if variant in done or (given.only and variant[0] not in given.only):
            continue
        found = measured(engine, policy.tokenizer, questions, training, variant, given.max_tokens)
        keys = dict(zip(("format", "wording", "place", "shots"), variant, strict=True))
        rows.append(keys | found)
        kept["machine"] = platform.processor() or platform.machine()
        kept["command"] = sorted({*kept["command"], command})
        files.write_json(path, kept)
        shown = {k: round(100 * found[k], 1) for k in ("format_rate", "accuracy", "last_number")}
        print(
            *variant, shown, f"{found['mean_tokens']:.0f} tokens {found['seconds']} s", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
