"""An SFT step here and in TRL's SFTTrainer: the same demonstrations, in one process, by turns.

    python benchmarks/sft_vs_trl.py                     # tiny and small, prints
    python benchmarks/sft_vs_trl.py --model weights/smollm2 --data FOLDER --keep

Same weights, batch of 8 demonstrations, LoRA r 16 on all linear layers, AdamW, mean cross entropy
of the completions' tokens; entropy and token accuracy are measured too. `own` is `train_sft.py
--backend own`, its micro-batches sized by its own rule; `trl` is `--backend trl`: a batch in one
piece, padded; `trl, one by one` the same trainer with micro-batches of one, which pad nothing.

`tiny` is the embedded base on its additions; `small` a random model of the size that
grpo_vs_trl.py has, on random ids of GSM8K's lengths. --model: a real base, on GSM8K (--data: its
folder) or on word problems. --keep writes benchmarks/results/sft_vs_trl_NAME_DTYPE_cpu.json, from
which benchmarks/tables.py makes the table of docs/speed.md. Ratios are TRL's seconds over ours, of
the same turn; the table has their median, lowest and highest.
"""

import argparse
import copy
import logging
import random
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from shapes import (  # noqa: E402
    EOS,
    WORKLOADS,
    clock,
    machine,
    median_and_range,
    peak_memory,
    random_model,
    rates,
    word_tokenizer,
)

import config  # noqa: E402
import data  # noqa: E402
import train_sft  # noqa: E402
from rlm.learner.demonstrations import packed  # noqa: E402
from rlm.learner.optimizer import Optimizer  # noqa: E402
from rlm.learner.token_budget import TokenBudget  # noqa: E402
from rlm.models.loading import add_lora, load_base  # noqa: E402
from rlm.models.policy import Policy  # noqa: E402
from training import sft  # noqa: E402
from training.stage import Stage  # noqa: E402

BATCH = 8
RATE = 1e-6  # so small that all go on with the policy they started with
CONTENDERS = ("own", "trl", "trl, one by one")
# Of 64 demonstrations of GSM8K in SmolLM2's tokens: an instruction that all share, then the
# question; the completion. Means of 57 + 70 and 105.
SHARED, QUESTION, COMPLETION = 57, (30, 110), (35, 175)


@dataclass(frozen=True)
class Work:
    """What all sides do. batches: of demonstrations, (a prompt's ids, a completion's ids)."""

    name: str
    base: Any
    tokenizer: Any
    batches: list[list[tuple[list[int], list[int]]]]

    def policy(self) -> Policy:
        """Return a policy on weights of its own, the same at every call."""
        model = add_lora(copy.deepcopy(self.base), r=16, alpha=32, seed=0)
        return Policy(model, self.tokenizer, self.name, {})


def work_of(name: str, batches: int, dtype: str, folder: str | None) -> Work:
    """Return the model and demonstrations of a size, or of a base that lies at the place `name`."""
    count = BATCH * batches
    if name == "small":
        shape = WORKLOADS["cpu"]["small"]
        model = random_model(shape, dtype=getattr(torch, dtype))
        return Work(name, model, word_tokenizer(shape.vocabulary), cut(random_ids(shape, count)))
    place = str(ROOT / "weights/tiny_base") if name == "tiny" else name
    model, tokenizer = load_base(place, device="cpu", dtype=dtype)
    task = "addition" if name == "tiny" else "gsm8k" if folder else "word_problems"
    examples = data.load_examples(task, "train", n=count, data=folder if task == "gsm8k" else None)
    options = {"generation_config": model.generation_config}
    tokens = [data.sft_tokens(e, tokenizer, "think", **options) for e in examples]
    found = [(each["prompt_ids"], each["completion_ids"]) for each in tokens]
    return Work(Path(name).name.removesuffix(".gguf").lower(), model, tokenizer, cut(found))


def random_ids(shape, count: int) -> list[tuple[list[int], list[int]]]:
    """Return demonstrations of random ids, of the lengths that GSM8K has."""
    draw = random.Random(0)

    def ids(tokens: int) -> list[int]:
        return [draw.randrange(EOS + 2, shape.vocabulary) for _ in range(tokens)]

    shared = ids(SHARED)
    return [
        (shared + ids(draw.randint(*QUESTION)), [*ids(draw.randint(*COMPLETION)), EOS])
        for _ in range(count)
    ]


def cut(demonstrations: list) -> list[list]:
    return [demonstrations[i : i + BATCH] for i in range(0, len(demonstrations), BATCH)]


class Own:
    """The step of train_sft.py --backend own, by its own functions."""

    def __init__(self, work: Work):
        policy = work.policy()
        self.model = policy.model
        self.optimizer = Optimizer(self.model, **sft.ADAMW)
        self.optimizer.learning_rate = RATE
        self.budget = TokenBudget(policy.model, len(policy.tokenizer), cpu_bytes=2**31)

    def step(self, batch) -> float:
        """Take the step; return its loss."""
        return sft.update(self.model, self.optimizer, batch, self.budget)["loss"]


class Theirs:
    """TRL's SFTTrainer as train_sft.py sets it, driven as its own loop does.

    rows: demonstrations of a micro-batch.
    """

    def __init__(self, work: Work, rows: int):
        from datasets import Dataset, disable_progress_bars
        from trl import SFTTrainer

        disable_progress_bars()
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        self.rows, self.folder = rows, tempfile.TemporaryDirectory()
        settings = config.load(config.SFTSettings, ["--learning-rate", str(RATE)])
        policy, records = work.policy(), [record(d) for d in work.batches[0]]
        run: Any = SimpleNamespace(path=Path(self.folder.name))
        stage = Stage(settings, policy, engine=None, run=run, task=None)
        arguments, _ = train_sft.trainer_arguments(stage, len(records))
        self.trainer = trainer = SFTTrainer(
            model=policy.model, args=arguments, train_dataset=Dataset.from_list(records),
            processing_class=copy.deepcopy(work.tokenizer),
        )  # fmt: skip
        trainer.create_optimizer()
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )

    def step(self, batch) -> float:
        """Take the step; return its loss."""
        trainer = self.trainer
        parts = [batch[i : i + self.rows] for i in range(0, len(batch), self.rows)]
        tokens = torch.tensor(sum(len(completion) for _, completion in batch))
        trainer.current_gradient_accumulation_steps = len(parts)
        loss = 0.0
        for i, part in enumerate(parts, 1):
            trainer.accelerator.gradient_state._set_sync_gradients(i == len(parts))
            inputs = trainer.data_collator([record(d) for d in part])
            loss += float(trainer.training_step(trainer.model_wrapped, inputs, tokens))
        trainer._clip_grad_norm(trainer.model)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss


def record(demonstration) -> dict:
    """Return what train_sft.py makes of a demonstration."""
    prompt, completion = demonstration
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def compare(work: Work, repeats: int) -> dict:
    """Return the figures: seconds, memory and losses of each side, ratios to ours."""
    made: dict[str, Own | Theirs] = {
        "own": Own(work), "trl": Theirs(work, BATCH), "trl, one by one": Theirs(work, 1),
    }  # fmt: skip
    for side in made.values():
        side.step(work.batches[0][:2])  # warms up
    turns: dict[str, list] = {name: [] for name in CONTENDERS}
    for turn in range(repeats):
        places = range(turn, turn + len(CONTENDERS))
        for name in (CONTENDERS[place % len(CONTENDERS)] for place in places):
            with peak_memory("cpu") as memory:
                began = clock("cpu")
                loss = made[name].step(work.batches[turn % len(work.batches)])
                seconds = clock("cpu") - began
            turns[name].append((seconds, (memory or [0.0])[0], loss))
    return {
        "seconds": {n: median_and_range([t[0] for t in found]) for n, found in turns.items()},
        "ratios": {n: median_and_range(ratios(turns, n)) for n in CONTENDERS[1:]},
        "peak_mb": {n: round(max(t[1] for t in found), 1) for n, found in turns.items()},
        "losses": {n: [round(t[2], 4) for t in found] for n, found in turns.items()},
        "token_budget": made["own"].budget.tokens,  # type: ignore[union-attr]
    }


def ratios(turns: dict, name: str) -> list[float]:
    """Return the seconds over ours, turn by turn."""
    return [t[0] / o[0] for t, o in zip(turns[name], turns["own"], strict=True)]


def lengths(batches: list) -> dict[str, float]:
    """Return mean tokens, and those that go through a model: padded, or a row of ours, over all."""
    every = [d for batch in batches for d in batch]
    prompt, completion = (sum(len(d[i]) for d in every) for i in (0, 1))
    padded = sum(len(batch) * max(len(p) + len(c) for p, c in batch) for batch in batches)
    row = sum(len(packed(batch).ids) for batch in batches)
    return {
        "prompt_tokens": round(prompt / len(every), 1),
        "completion_tokens": round(completion / len(every), 1),
        "padded_over_true_tokens": round(padded / (prompt + completion), 2),
        "packed_over_true_tokens": round(row / (prompt + completion), 2),
    }


def measure(work: Work, repeats: int, dtype: str) -> dict:
    """Return everything about one size, as it is kept in the JSON."""
    found = {
        "size": work.name,
        "dtype": dtype,
        "batch": BATCH,
        "repeats": repeats,
        "load": lengths(work.batches),
        "clock": "processor time",
        "machine": machine("cpu") | rates(getattr(torch, dtype), "cpu"),
        **compare(work, repeats),
    }
    print(f"{work.name}, {dtype}, {found['load']}")
    for name, seconds in found["seconds"].items():
        ratio = found["ratios"].get(name)
        told = "" if ratio is None else "  {median:.2f} ({low:.2f} to {high:.2f})".format(**ratio)
        print(f"  {name:16} {seconds['median']:8.3f} s  +{found['peak_mb'][name]:.0f} MB{told}")
    sys.stdout.flush()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "small"), nargs="*", default=["tiny", "small"])
    parser.add_argument("--model", help="a real base beside them: a folder or a GGUF file")
    parser.add_argument("--data", help="folder of GSM8K for --model; else word problems")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each, default 3")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/*.json")
    parser.add_argument("--json", help="file for the figures of a single size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [*options.size, *([options.model] if options.model else [])]
    if options.json and len(names) != 1:
        parser.error(f"--json {options.json}: one file for {len(names)} sizes; use --keep")
    for name in names:
        work = work_of(name, options.repeats, options.dtype, options.data)
        found = measure(work, options.repeats, options.dtype)
        place = RESULTS / f"sft_vs_trl_{work.name}_{options.dtype}_cpu.json"
        if options.json or options.keep:
            from rlm.files import write_json

            write_json(Path(options.json) if options.json else place, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
