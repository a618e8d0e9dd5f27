"""What SFT is shown: the data's solutions, or the base's own right answers, rewritten.

    python train_sft.py --demonstrations own --own-samples 8

Solutions that people wrote can cost an instruct model its own way of reasoning. Its own answers
teach it the format and leave the reasoning alone: the base is asked in the format "plain", each
question some times; a right answer that ended by itself is kept, one a question, and written
into the format of the training. They lie in runs/NAME/demonstrations.jsonl, which --task jsonl
reads; what they were sampled with lies beside it, so that a run that goes on does not sample again.
"""

import hashlib
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import data
from rlm import files, parallel
from rlm.answers import kinds
from rlm.data import readers, rows
from rlm.data.splits import question_key
from rlm.errors import InputError
from rlm.models.prompts import is_demonstration, make_prompt
from rlm.records import Example, Rollout
from rlm.seeds import derive

NAME, BESIDE = "demonstrations.jsonl", "demonstrations.json"
CHUNK = 128  # questions that are asked between two lines on the console
WORDS = 5  # fewer are an answer, not how it was found
SAMPLED_WITH = ("own_samples", "own_pick", "own_temperature", "max_tokens", "format", "seed")


def human(examples: list[Example], settings) -> list[Example]:
    """Return the examples that have a solution; InputError if none has."""
    graphs = settings.task == "orchestrator"  # its demonstrations are graphs, not solutions
    solved = [e for e in examples if e.solution is not None or graphs]
    if not solved:
        raise InputError(
            f"--task {settings.task}: none of {len(examples)} examples has a solution to learn "
            "from; add a 'solution' field, or use --demonstrations own or train_grpo.py, which "
            "need only answers"
        )
    return solved


def kept(settings) -> dict | None:
    """Return what an earlier run of this name has sampled, None for nothing that is whole.

    Call it before the run's folder is begun anew. It is {"text", "asked", "with"}: the file, the
    number of its questions, and what it was sampled with.
    """
    if settings.demonstrations != "own" or settings.resume == "never":
        return None
    beside = files.read_object(settings.run_dir / BESIDE)
    try:
        text = (settings.run_dir / NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return beside | {"text": text} if beside.get("sha256") == _digest(text) else None


def own(stage, examples: list[Example], found: dict | None) -> tuple[list[Example], dict]:
    """Return the base's own demonstrations, and what the manifest says of them.

    found: of `kept`; it is taken if it was sampled from the same base with the same settings and
    questions. InputError if no question gave a demonstration.
    """
    settings, world = stage.settings, parallel.world()
    unique = {question_key(e.question): e for e in reversed(examples)}
    asked = [e for e in examples if unique[question_key(e.question)] is e]
    now = sampled_with(stage, asked)
    found = world.broadcast(found if world.first else None, "the earlier demonstrations")
    fresh = not found or found["with"] != now
    text = sample(stage, asked) if fresh else found["text"]
    path = stage.run.path / NAME
    if world.first:
        files.write_text(path, text)
        beside = {"asked": len(asked), "with": now, "sha256": _digest(text)}
        files.write_json(stage.run.path / BESIDE, beside)
    shown = read(text, path)
    stage.run.info(
        f"own demonstrations: {len(shown)} of {len(asked)} questions gave one "
        f"({settings.own_samples} samples a question, {settings.own_pick}); "
        f"{'sampled now' if fresh else 'sampled before'}: {path}"
    )
    facts = {"kind": "own", "count": len(shown), "questions": len(asked)}
    return shown, facts | {"samples": settings.own_samples}


def sampled_with(stage, asked: list[Example]) -> dict:
    """Return all that the sampled demonstrations depend on."""
    from rlm.models.adapters import fingerprint

    settings = {name: getattr(stage.settings, name) for name in SAMPLED_WITH}
    base = fingerprint(stage.policy.model)
    return settings | {"base_fingerprint": base, "data": data.fingerprint(asked)}


def sample(stage, asked: list[Example]) -> str:
    """Ask the model as it begins, its LoRA off; return the demonstrations as JSONL.

    InputError if there are none. Each process asks its share of the questions.
    """
    from rlm.engine.engine import Sampling

    settings, tokenizer = stage.settings, stage.policy.tokenizer
    limits = Sampling(settings.max_tokens, temperature=settings.own_temperature)
    engine, lines, rollouts = parallel.SharedEngine(stage.engine), list[str](), list[Rollout]()
    right = 0
    with getattr(stage.policy.model, "disable_adapter", nullcontext)():
        engine.sync()
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            prompts = [make_prompt(e.question, tokenizer, "plain", kind=e.kind) for e in part]
            seed = derive("own", settings.seed, start)
            groups = engine.generate(prompts, settings.own_samples, limits, seed=seed)
            for example, group in zip(part, groups, strict=True):
                rollouts += group
                right += sum(is_right(example, rollout.text) for rollout in group)
                chosen = choose(example, group, settings.format, settings.own_pick)
                lines += [line(chosen)] if chosen else []
            stage.run.info(
                f"own demonstrations: {start + len(part)} of {len(asked)} questions asked, "
                f"{len(lines)} gave one"
            )
    engine.sync()
    if not lines:
        cut = sum(rollout.finish == "length" for rollout in rollouts) / len(rollouts)
        raise InputError(
            f"--demonstrations own: none of {len(asked)} questions gave one: of "
            f"{len(rollouts)} samples {right} were right and {cut:.0%} cut off at --max-tokens "
            f"{settings.max_tokens}; use more --num-samples or --own-samples, a larger "
            "--max-tokens, easier questions, or --demonstrations human"
        )
    return "".join(lines)


def choose(example: Example, group: list[Rollout], format_name: str, pick: str) -> Example | None:
    """Return the example with one of its answers as the solution, None if none will do.

    pick: of those that will do the "shortest" by tokens, or the "first".
    """
    good = []
    for rollout in group:
        if rollout.finish == "stop" and is_right(example, rollout.text):
            written = rewritten(example, rollout.text, format_name)
            good += [(len(rollout.ids), written)] if written else []
    if not good:
        return None
    return (min(good, key=lambda each: each[0]) if pick == "shortest" else good[0])[1]


def is_right(example: Example, text: str) -> bool:
    """Return whether an answer in the base's own words is right.

    By what it states as its answer; where that cannot be read, by the lenient reading.
    """
    verdict = kinds.judge(example, text, "plain")
    if verdict.word == "unreadable":
        return kinds.is_right_leniently(example, text)
    return bool(verdict.right)


def rewritten(example: Example, text: str, format_name: str) -> Example | None:
    """Return the example with the text as its solution, without a last line of #### and the answer.

    None if nothing is worked out in it (one number at most; of answers that are no numbers: fewer
    words than WORDS), or if, written in the format, its answer could not be read back.
    """
    text = text.strip()
    before, mark, last = text.rpartition("####")
    working = before.strip() if mark and "\n" not in last else text
    numbers, words = len(re.findall(r"\d+", working)), len(working.split())
    if numbers < 2 if example.kind == "number" else words < WORDS:
        return None
    try:
        (made,) = read(line(replace(example, solution=working)), Path(NAME))
    except InputError:  # a NUL or half a character in it
        return None
    return made if is_demonstration(made, format_name) else None


def line(example: Example) -> str:
    """Return the line of a demonstration, in the layout of --task jsonl.

    There what follows the last #### of a solution is its answer: where a solution has other ones
    (headings, mostly), such an answer is added, so that nothing of it is lost.
    """
    solution = example.solution or ""
    solution += f"\n#### {example.gold}" if "####" in solution else ""
    answer = list(example.golds) if example.accepted else example.gold
    row = {"id": example.id, "question": example.question, "answer": answer}
    return json.dumps(row | {"solution": solution} | example.asks, ensure_ascii=False) + "\n"


def read(text: str, path: Path) -> list[Example]:
    """Return the demonstrations of a file; `path` is for error messages."""
    found = []
    for number, each in enumerate(text.encode("utf-8", "surrogatepass").split(b"\n")[:-1], 1):
        where = f"{path}:{number}"
        row = readers.parse_line(each, where)
        found.append(rows.own_example(row, where, str(row["id"])))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
