"""The tables of docs/scale.md: what fits where, how it is started, seconds a step, and the check.

    python benchmarks/scale_tables.py          # prints the tables, writes benchmarks/results/
                                               # scale_model.json and the tables of docs/scale.md
    python benchmarks/scale_tables.py --check  # exits with 1 if docs/scale.md is another

It knows benchmarks/scale_model.py and what lies in benchmarks/results/; torch is not imported.
"""

import math
import sys
from dataclasses import asdict, replace

import scale_model as scale
from markdown_table import markdown_table
from qwen2_shape import MODELS, Qwen2Shape
from scale_check import RESULTS, ROOT, measured, measured_axes
from scale_model import FOUR_BIT, HALF, MACHINES, Load, Machine

sys.path.insert(0, str(ROOT))
LOAD = Load()
STEPS, EVAL_EVERY, QUESTIONS = 200, 8, 200  # of a stage: steps, and validations with questions
WAYS = {
    "own": "own engine",
    "torchrun": "own engine, torchrun",
    "4bit": "`--quantize 4bit`",
    "fsdp": "FSDP2, vLLM",
    "no": "–",
}


# --- which way a model is trained on a machine


def way(m: Qwen2Shape, load: Load, machine: Machine) -> str:
    """Return the key of WAYS: whole on each GPU if it fits, else cut over many, else in 4 bits."""
    if scale.fits(m, load, machine):
        return "torchrun" if machine.gpus > 1 else "own"
    half = machine.gpus // 2  # half of them learn, the others sample
    if half > 1 and tensor_parallel(m, machine) <= half:
        learners = replace(machine, gpus=half)
        if scale.micro_tokens(m, learners, shards=half) >= load.prompt + load.longest:
            return "fsdp"
    return "4bit" if scale.fits(m, load, machine, FOUR_BIT) else "no"


def tensor_parallel(m: Qwen2Shape, machine: Machine) -> int:
    """Return the GPUs that one copy of the base is cut over in vLLM: with 30 % left for a cache."""
    needed = scale.weight_bytes(m) / 0.7 / machine.memory
    return 2 ** max(0, math.ceil(math.log2(needed)))


def seconds(m: Qwen2Shape, load: Load, machine: Machine) -> dict[str, float]:
    """Return a step's seconds by phase, {} where the model is not trained there.

    Groups stay whole, so the busiest process counts: it has ceil(questions / processes) of them.
    """
    how, link = way(m, load, machine), machine.link
    if how == "no":
        return {}
    if how == "fsdp":
        half, cut = machine.gpus // 2, tensor_parallel(m, machine)
        engine = replace(machine, flops=machine.flops * cut, bandwidth=machine.bandwidth * cut)
        learner = replace(machine, gpus=half)
        sampled, learned = share(load, half // cut), share(load, half)
        return {
            "sampling": scale.sampling_seconds(m, sampled, engine),
            "learning": scale.learning_seconds(m, learned, machine),
            "exchange": scale.shard_seconds(m, learned, learner) + scale.sync_bytes(m) / link,
        }
    size, mine = FOUR_BIT if how == "4bit" else HALF, share(load, machine.gpus)
    again = scale.micro_tokens(m, machine, size) < load.prompt + load.longest
    return {
        "sampling": scale.sampling_seconds(m, mine, machine, size=size),
        "learning": scale.learning_seconds(m, mine, machine, again=again),
        "exchange": scale.all_reduce_bytes(m, machine.gpus) / link,
    }


def share(load: Load, processes: int) -> Load:
    """Return the load of the busiest of so many processes."""
    return replace(load, questions=math.ceil(load.questions / max(1, processes)))


def stage_seconds(m: Qwen2Shape, load: Load, machine: Machine) -> float | None:
    """Return those of STEPS steps and their validations, one greedy answer a question."""
    step = seconds(m, load, machine)
    if not step:
        return None
    asked = seconds(m, replace(load, questions=QUESTIONS, group=1), machine)
    validations = STEPS // EVAL_EVERY + 1
    return STEPS * sum(step.values()) + validations * asked["sampling"]


# --- the tables


def models_table() -> str:
    lines = [
        [
            m.name, f"{scale.all_weights(m) / 1e9:.2f}", f"{scale.weight_bytes(m) / 1e9:.1f}",
            f"{scale.weight_bytes(m, FOUR_BIT) / 1e9:.1f}", f"{scale.lora_weights(m) / 1e6:.1f}",
            f"{scale.lora_bytes(m) / 1e9:.2f}", f"{scale.activation_bytes(m) / 1e6:.1f}",
            f"{scale.cache_bytes(m) / 1e3:.0f}", f"{scale.logits_bytes(m) / 1e6:.0f}",
            f"{scale.sync_bytes(m) / 1e6:.0f}",
            f"{LOAD.longest * m.layers * scale.LAUNCHES:.0f}",
        ]
        for m in MODELS
    ]  # fmt: skip
    head = ["Qwen2.5", "10⁹ weights", "base, GB", "in 4 bits, GB", "LoRA, 10⁶", "its state, GB",
            "activations, MB a token", "cache, KB a token", "logits chunk, MB",
            "adapter sync, MB", "launches, s a step"]  # fmt: skip
    return markdown_table([head, *lines])


def machines_table() -> str:
    lines = [
        [m.name, f"{m.memory / 1e9:.0f}", f"{m.flops / 1e12:.0f}", f"{m.bandwidth / 1e12:.2f}",
         f"{m.link / 1e9:.0f}"]
        for m in MACHINES
    ]  # fmt: skip
    head = ["", "GB a GPU", "TFLOP/s", "memory, TB/s", "link, GB/s"]
    return markdown_table([head, *lines])


def fits_table() -> str:
    """Return the least memory, and the way on each machine with its micro-batch."""
    lines = []
    for m in MODELS:
        need = [f"{scale.needed_bytes(m, LOAD, size) / 1e9:.0f}" for size in (HALF, FOUR_BIT)]
        lines.append([m.name, *need, *(WAYS[way(m, LOAD, machine)] for machine in MACHINES)])
    head = ["", "GB needed", "in 4 bits", *(machine.name for machine in MACHINES)]
    return markdown_table([head, *lines])


def steps_table() -> str:
    """Return sampling + learning + exchange of a step, and the hours of a stage."""
    lines = []
    for m in MODELS:
        cells = []
        for machine in MACHINES:
            found, stage = seconds(m, LOAD, machine), stage_seconds(m, LOAD, machine)
            parts = " + ".join(short(x) for x in found.values() if x)
            cells.append(f"{parts}; {stage / 3600:.1f} h" if found and stage else "–")
        lines.append([m.name, *cells])
    return markdown_table([["", *(machine.name for machine in MACHINES)], *lines])


def growth_table(model: str = "7B") -> str:
    """Return a step on more and more GPUs: of the same load, and of one that grows with them."""
    m = next(m for m in MODELS if m.name == model)
    lines = []
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        machine = replace(MACHINES[5 if gpus <= 8 else 6], gpus=gpus)
        same, grown = (
            seconds(m, replace(LOAD, questions=n), machine) for n in (32, max(32, 4 * gpus))
        )
        tokens = max(32, 4 * gpus) * LOAD.group * LOAD.completion
        lines.append([
            gpus, *(short(same[p]) for p in ("sampling", "learning")),
            f"{1e3 * same['exchange']:.1f}", short(sum(same.values())), short(sum(grown.values())),
            f"{tokens / sum(grown.values()):,.0f}",
        ])  # fmt: skip
    head = ["GPUs", "sampling, s", "learning, s", "exchange, ms", "step, s",
            "step at 4 questions a GPU, s", "its tokens a second"]  # fmt: skip
    return markdown_table([head, *lines])


def short(x: float) -> str:
    """Return a number of seconds with two digits that count.

    >>> short(123.4), short(12.3), short(0.123), short(0.001)
    ('123', '12', '0.12', '0.00')
    """
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 1 else f"{x:.2f}"


def check_table(cases: list[dict]) -> str:
    """Return predicted, measured and their ratio of each case."""
    lines = []
    for c in cases:
        name = f"{c['name']}, {c['x']:,}" if "x" in c else c["name"]
        cells = []
        for figure in ("sampling_seconds", "learning_seconds", "learning_mb"):
            one, other = c[figure], c[f"measured_{figure}"]
            cells.append(f"{one:.3g} / {other:.3g} = {one / other:.2f}")
        lines.append([name + (" (fitted)" if c.get("fitted") else ""), *cells])
    head = ["", "sampling, s", "learning, s", "learning adds, MB"]
    return markdown_table([head, *lines])


def tables() -> dict[str, str]:
    return {
        "models": models_table(), "machines": machines_table(), "fits": fits_table(),
        "steps": steps_table(), "growth": growth_table(),
        "check": check_table(measured()), "check axes": check_table(measured_axes()),
    }  # fmt: skip


def main() -> int:
    from tables import fill

    from rlm import files

    path, made = ROOT / "docs" / "scale.md", tables()
    now = path.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        return int(fill(now, made) != now)
    for name, text in made.items():
        print(f"{name}\n{text}\n")
    by_machine = {
        f"{m.name} on {machine.name}": {"way": way(m, LOAD, machine)} | seconds(m, LOAD, machine)
        for m in MODELS
        for machine in MACHINES
    }
    found = {"load": asdict(LOAD), "rates": asdict(scale.GPU), "steps": by_machine,
             "check": measured(), "check_axes": measured_axes()}  # fmt: skip
    files.write_json(RESULTS / "scale_model.json", found)
    files.write_text(path, fill(now, made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
