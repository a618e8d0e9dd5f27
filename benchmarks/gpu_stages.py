"""The stages of gpu.py: each takes its `Bench` and keeps figures. How fast, in how much memory."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from gpu_checks import facts, graphs_of, right
from gpu_pieces import ROOT, Words, lora_model, masks, random_prompts


def learner(bench) -> None:
    from rlm.learner import lm_head
    from rlm.learner.optimizer import Optimizer
    from rlm.learner.rehearsal import learn
    from rlm.learner.token_budget import checkpoint

    tokens = 256 if bench.small else 16384
    model = lora_model(bench, "Qwen3-0.6B")
    size = model.config.vocab_size
    ids = torch.randint(5, size, (tokens + 1,)).tolist()
    loads = {
        "one row": [(ids[:1], [ids[1:]])],
        "groups": [(ids[:128], [ids[i : i + 257] for i in range(0, 256, 32)])]
        * (1 if bench.small else 7),
    }
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-6

    def variant(name: str, *, again: bool, masked: bool = False, small_chunks: bool = False):
        checkpoint(model, on=again)
        before = lm_head.LOGITS
        lm_head.LOGITS = before | {"cuda": 2**23} if small_chunks else before
        for load, groups in loads.items():
            count = sum(len(p) + sum(len(c) - 1 for c in cs) for p, cs in groups)

            def work(groups=groups):
                learn(groups, model, vocab_size=size)
                optimizer.step()

            what = {"stage": "learner", "variant": name, "load": load, "tokens": count}
            with bench.tried(**what), masks() if masked else contextlib.nullcontext():
                found = bench.timed(work)
                bench.keep(**what, tokens_per_second=round(count / found["seconds"]), **found)
        lm_head.LOGITS = before

    variant("flash, checkpointing", again=True)
    variant("flash", again=False)
    variant("flash, small chunks of logits", again=False, small_chunks=True)
    variant("masks, checkpointing", again=True, masked=True)
    variant("masks", again=False, masked=True)


def decode(bench) -> None:
    from rlm.engine.engine import Engine, Sampling

    model = lora_model(bench, "0.5B")
    size = model.config.vocab_size
    count, groups, each = (8, 2, 2) if bench.small else (128, 32, 8)
    prompts, rows = random_prompts(size, groups), groups * each
    sampling = Sampling(count)

    def engine(name: str, *, graphs: bool, repeats: int):
        what = {"stage": "decode", "variant": name, "rows": rows}
        with bench.tried(**what):
            made = Engine(model, Words(size), cuda_graphs=graphs)
            found = bench.timed(lambda: made.generate(prompts, each, sampling, seed=1), repeats)
            rate = round(rows * count / found["seconds"])
            step = round(found["seconds"] / count * 1e3, 2)
            bench.keep(
                **what, tokens_per_second=rate, ms_a_step=step, **found, graphs=graphs_of(made)
            )

    engine("graphs", graphs=not bench.small, repeats=3)
    engine("no graphs", graphs=False, repeats=1)
    what = {"stage": "decode", "variant": "transformers generate", "rows": rows}
    with bench.tried(**what):
        longest = max(len(p.ids) for p in prompts)
        ids = torch.zeros(rows, longest, dtype=torch.long, device=bench.device)
        mask = torch.zeros_like(ids)
        for row in range(rows):
            own = prompts[row // each].ids
            ids[row, longest - len(own) :] = torch.tensor(own)
            mask[row, longest - len(own) :] = 1

        def work():
            with torch.no_grad():
                model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=count,
                    min_new_tokens=count, do_sample=True, top_k=0, temperature=1.0, pad_token_id=0,
                )  # fmt: skip

        found = bench.timed(work, repeats=1)
        rate, step = rows * count / found["seconds"], found["seconds"] / count * 1e3
        bench.keep(**what, tokens_per_second=round(rate), ms_a_step=round(step, 2), **found)


def step(bench) -> None:
    from contenders import Ours, Theirs, Work
    from shapes import WORKLOADS

    shape = WORKLOADS["cpu"]["small"] if bench.small else WORKLOADS["cuda"]["q05"]
    if bench.small:
        shape = replace(
            shape, prompts=2, group=2, max_tokens=8, hidden=64, layers=2, vocabulary=512,
            heads=4, mlp=128,
        )  # fmt: skip
    dtype = torch.float32 if bench.small else torch.bfloat16
    work = Work("small" if bench.small else "q05", shape, dtype, bench.device)

    def turn(name: str, side, number: int) -> None:
        found = side.step(number)
        found.pop("detail", None)
        bench.keep(
            stage="step", side=name, turn=number, **{k: round(v, 3) for k, v in found.items()}
        )

    ours: Any = None
    with bench.tried(stage="step", side="ours"):
        ours = Ours(work, 0.0)
        for number in range(-2, 3):  # the first ones capture graphs
            turn("ours", ours, number)
    for name, fastest in (("TRL, fastest", True), ("TRL, defaults", False)):
        with bench.tried(stage="step", side=name):
            theirs = Theirs(work, 0.0, fastest=fastest)
            for number in (-1, 0, 1):
                turn(name, theirs, number)
                if ours:
                    turn("ours", ours, 10 + number)
            del theirs
            torch.cuda.empty_cache()


def run(bench) -> None:
    """The users' own command; what it logs is the proof."""
    words = [
        "train.py", "--config", "configs/tiny_demo.yaml", "--run", "gpu", "--device", bench.device,
        "--weights", str(bench.out / "weights"), "--resume", "never", "--overwrite",
    ]  # fmt: skip
    few = ["--grpo-max-steps", "2", "--sft-max-steps", "4", "--eval-samples", "8"]
    words += [*few, "--num-samples", "64"] if bench.small else []
    began = time.time()
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    print(done.stdout[-4000:], done.stderr[-3000:])
    seconds = round(time.time() - began)
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    bench.keep(stage="run", code=done.returncode, seconds=seconds, table=table)
    for stage in ("sft", "grpo"):
        path = ROOT / "runs" / "gpu" / stage / "log.csv"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=False))
            bench.keep(stage="run", log=stage, last=json.dumps(last)[:1500])


def seven(bench) -> None:
    from rlm.engine.engine import Engine, Sampling
    from rlm.learner.rehearsal import learn
    from rlm.learner.token_budget import checkpoint

    model = lora_model(bench, "7B")
    size = model.config.vocab_size
    count, groups, each = (8, 2, 2) if bench.small else (48, 32, 8)
    prompts = random_prompts(size, groups)
    with bench.tried(stage="seven", what="decode"):
        engine = Engine(model, Words(size), cuda_graphs=not bench.small)
        sampling = Sampling(count)
        found = bench.timed(lambda: engine.generate(prompts, each, sampling, seed=1), repeats=2)
        rate = round(groups * each * count / found["seconds"])
        bench.keep(
            stage="seven", what="decode", rows=groups * each, tokens_per_second=rate,
            ms_a_step=round(found["seconds"] / count * 1e3, 2), **found, graphs=graphs_of(engine),
        )  # fmt: skip
        engine.close()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    ids = torch.randint(5, size, (9000,)).tolist()
    many, few = (1, 1) if bench.small else (4, 1)
    group = (ids[:128], [ids[i : i + 512] for i in range(0, 256, 32)])
    long = (ids[:128], [ids[: 256 if bench.small else 8192]])
    for name, groups_, again in (
        ("4 x 8 x 512, checkpointing", [group] * many, True),
        ("1 x 8 x 512", [group] * few, False),
        ("a completion of 8,192, checkpointing", [long], True),
    ):
        with bench.tried(stage="seven", what=name):
            checkpoint(model, on=again)
            tokens = sum(len(p) + sum(len(c) - 1 for c in cs) for p, cs in groups_)
            found = bench.timed(lambda g=groups_: learn(g, model, vocab_size=size), repeats=2)
            rate = round(tokens / found["seconds"])
            bench.keep(stage="seven", what=name, tokens=tokens, tokens_per_second=rate, **found)


STAGES = {
    "facts": facts, "right": right, "learner": learner, "decode": decode, "step": step,
    "run": run, "seven": seven,
}  # fmt: skip
