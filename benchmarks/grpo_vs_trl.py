"""A GRPO step here and in TRL's GRPOTrainer: the same work, in one process, by turns.

    python benchmarks/grpo_vs_trl.py --size small --repeats 5
    python benchmarks/grpo_vs_trl.py --size q05 --dtype bfloat16 --json FILE
    python benchmarks/grpo_vs_trl.py --all            # every size that this machine can hold

Same weights, prompts, group size, maximum length, temperature 1, LoRA r 16 on all linear layers,
one update per batch, the same reward. Lengths follow one law on both sides (shapes.py); `tiny` is
the embedded base with its own. TRL stands in two rows: its defaults (micro-batches of 8, gradient
checkpointing, and in bfloat16 its autocast over float32 weights), and its fastest setting of the
same precision (no checkpointing, larger micro-batches, bfloat16 weights).

Three models of 7B are more than a card holds: of `q7b` one contender is there at a time and takes
all its turns. Each turn is written down when it is over (FILE with .turns.jsonl at its end), and
who runs out of memory drops out, with the others' turns kept.

A step is: sample, score, learn, update. `learn` is what is left of it after the sampling. Ratios
are TRL's seconds over ours, of the same turn; the table has their median, lowest and highest.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from contenders import Ours, Theirs, Work  # noqa: E402
from shapes import WORKLOADS, clock, machine, median_and_range, rates  # noqa: E402
from turns import Turns  # noqa: E402

PHASES = ("rollout", "learn", "step")
SIZES = ("tiny", "small", "q05", "q7b")
ALONE = ("q7b",)  # whose contenders do not fit a card together


def work_of(size: str, dtype: str, device: str, overrides: dict) -> Work:
    """Return the model, prompts and load of a size."""
    from transformers import AutoConfig

    if size == "tiny":
        config = AutoConfig.from_pretrained(ROOT / "weights/tiny_base")
        shape = replace(
            WORKLOADS["cpu"]["small"], hidden=config.hidden_size, layers=config.num_hidden_layers,
            heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
            mlp=config.intermediate_size, vocabulary=config.vocab_size,
            prompts=16, max_tokens=160, rows=64,
        )  # fmt: skip
    else:
        shape = WORKLOADS[device][size]
    return Work(size, replace(shape, **overrides), getattr(torch, dtype), device)


def floor(work: Work, machine_rates: dict, tokens: dict) -> dict[str, float]:
    """Return the seconds that rollouts and learning need at least, by operations and bytes.

    Two operations per weight and token; learning runs forward and backward and needs no gradient
    of the base's weights, hence twice that. Decoding reads all weights at least once per token of
    the longest completion.
    """
    shape, rate = work.shape, machine_rates["matrix_gflops"] * 1e9
    body, head = 2 * shape.body_weights, 2 * shape.head_weights
    size = torch.tensor([], dtype=work.dtype).element_size()
    bytes_read = (shape.body_weights + shape.head_weights) * size * tokens["longest"]
    sampled = (
        body * (tokens["prompt"] + tokens["completion"]) + head * tokens["completion"]
    ) / rate
    learned = 2 * (body * (tokens["prompt"] + tokens["completion"]) + head * tokens["completion"])
    return {
        "rollout": max(sampled, bytes_read / (machine_rates["memory_gbs"] * 1e9)),
        "learn": learned / rate,
    }


def compare(work: Work, kl_weight: float, repeats: int, keep: Path | None = None) -> dict:
    """Return the figures of one KL weight: seconds, memory, tokens, ratios.

    keep: file that gets each turn when it is over. Who ran out of memory has no figures.
    """
    taking = Turns({
        "ours": partial(Ours, work, kl_weight),
        "default": partial(Theirs, work, kl_weight, fastest=False),
        "fastest": partial(Theirs, work, kl_weight, fastest=True),
    }, keep)  # fmt: skip
    taking = (taking.alone if work.size in ALONE else taking.alternating)(repeats)
    turns = {name: found for name, found in taking.found.items() if found}
    names = [name for name in ("default", "fastest") if {name, "ours"} <= turns.keys()]
    found: dict = {"out_of_memory": taking.failed} if taking.failed else {}
    if "ours" in turns:
        found |= {
            "ours_tokens": turns["ours"][-1]["detail"],
            "padded_over_true_tokens": padding(turns["ours"]),
        }
    return found | {
        "seconds": {
            name: {phase: median_and_range([t[phase] for t in found]) for phase in PHASES}
            for name, found in turns.items()
        },
        "tokens_per_second": {
            name: {
                phase: round(sum(t["tokens"] for t in found) / sum(t[phase] for t in found), 1)
                for phase in PHASES
            }
            for name, found in turns.items()
        },
        "mean_completion_tokens": {
            name: round(sum(t["tokens"] for t in found) / sum(t["rows"] for t in found), 1)
            for name, found in turns.items()
        },
        "learning_peak_mb": {
            name: round(max(t["learn_mb"] for t in found), 1) for name, found in turns.items()
        },
        "rollout_peak_mb": {
            name: round(max(t["rollout_mb"] for t in found), 1) for name, found in turns.items()
        },
        "ratios": {
            name: {phase: median_and_range(ratios(turns, name, phase)) for phase in PHASES}
            for name in names
        },
    }


def padding(turns: list[dict]) -> dict[str, float]:
    """Return the tokens that padded batches go through over those that there are.

    Of rollouts: every row decodes as long as the longest, its prompt stands in it, as long as the
    longest prompt. Ours: each prompt once, each completion's own tokens. So much faster is a
    sampler without padding if a token takes it as long, and so is learning, which sees the same.
    """
    shares = []
    for turn in turns:
        d = turn["detail"]
        padded = turn["rows"] * (d["longest_prompt"] + d["longest"])
        shares.append(padded / (d["prompt"] + d["completion"]))
    return median_and_range(shares)


def ratios(turns: dict, name: str, phase: str) -> list[float]:
    """Return TRL's seconds per token over ours, turn by turn."""
    pairs = zip(turns[name], turns["ours"], strict=False)  # one may have dropped out
    return [(t[phase] / t["tokens"]) / (o[phase] / o["tokens"]) for t, o in pairs]


def measure(work: Work, repeats: int, kl_weights: list[float], keep: Path | None = None) -> dict:
    """Return everything about one size, as it is kept in the JSON. keep: as of `compare`."""
    print(f"{work.size}, {work.dtype}, {work.device}", flush=True)
    found_rates = rates(work.dtype, work.device)
    parts = {}
    for weight in kl_weights:
        parts[weight] = compare(work, weight, repeats, keep)
        print(table(parts[weight], f"KL weight {weight}"), flush=True)
    main = parts[kl_weights[0]]
    floors: dict = {}
    if "ours_tokens" in main:
        needed = floor(work, found_rates, main["ours_tokens"])
        seconds = main["seconds"]["ours"]
        floors = {
            "floor_seconds": {name: round(value, 4) for name, value in needed.items()},
            "times_the_floor": {k: round(seconds[k]["median"] / v, 2) for k, v in needed.items()},
        }
    return {
        "size": work.size,
        "dtype": str(work.dtype).removeprefix("torch."),
        "load": work.load(),
        "repeats": repeats,
        "machine": machine(work.device) | found_rates,
        "clock": "wall" if work.device == "cuda" else "processor time",
        **main,
        **floors,
        "with_kl": {str(weight): parts[weight] for weight in kl_weights[1:]},
    }


def table(part: dict, title: str) -> str:
    """Return the figures as lines for the console."""
    lines = [f"  {title} (ratio to ours, lowest to highest; memory of sampling and learning)"]
    for name, seconds in part["seconds"].items():
        cells = []
        for phase in PHASES:
            speed = part["tokens_per_second"][name][phase]
            cell = f"{phase} {seconds[phase]['median']:.3f} s, {speed:.0f} tokens/s"
            if name in part["ratios"]:
                r = part["ratios"][name][phase]
                cell += f" ({r['median']:.2f}, {r['low']:.2f} to {r['high']:.2f})"
            cells.append(cell)
        peaks = (part[f"{phase}_peak_mb"][name] for phase in ("rollout", "learning"))
        memory = "+{:.0f} and +{:.0f} MB".format(*peaks)
        mean = f"{part['mean_completion_tokens'][name]} tokens a completion"
        lines.append(f"    {name:8} {'  '.join(cells)}  {memory}  {mean}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--all", action="store_true", help="every size and precision there is")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each, default 5")
    parser.add_argument("--kl-weights", type=float, nargs="+", default=[0.0, 0.04])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    parser.add_argument("--json", help="file for the figures; --all: in benchmarks/results")
    for name in ("prompts", "group", "max_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the size's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = [(options.size, options.dtype)]
    if options.all:
        sizes = ("tiny", *WORKLOADS[device])
        cases = [(s, d) for d in ("float32", "bfloat16") for s in sizes if usable(s, d, device)]
    elif options.size not in ("tiny", *WORKLOADS[device]):
        parser.error(f"--size {options.size}: only on a GPU; use {', '.join(WORKLOADS[device])}")
    overrides = {
        name: getattr(options, name)
        for name in ("prompts", "group", "max_tokens")
        if getattr(options, name)
    }
    for size, dtype in cases:
        began = clock(device)
        place = Path(options.json) if options.json else None
        if options.all:
            place = RESULTS / f"grpo_vs_trl_{size}_{dtype}_{device}.json"
        keep = place and place.with_suffix(".turns.jsonl")
        if keep:
            keep.unlink(missing_ok=True)
        work = work_of(size, dtype, device, overrides)
        found = measure(work, options.repeats, options.kl_weights, keep)
        if place:
            from rlm.files import write_json

            write_json(place, found)
        floors = json.dumps(found.get("times_the_floor"))
        print(f"  times the floor of operations and bytes: {floors}")
        print(f"  {clock(device) - began:.0f} s in all", flush=True)
    return 0


def usable(size: str, dtype: str, device: str) -> bool:
    """Return whether a size is measured in that precision: 7 billion weights only in bfloat16."""
    return dtype == "bfloat16" if size == "q7b" else (size != "tiny" or dtype == "float32")


if __name__ == "__main__":
    sys.exit(main())
