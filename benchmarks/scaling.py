"""How the seconds of a GRPO step grow: with G, completion length, vocabulary and model size.

    python benchmarks/scaling.py                 # measures and draws; some minutes of a CPU
    python benchmarks/scaling.py --draw          # draws again from the kept figures

One of them varies at a time around hidden 256, 4 layers, vocabulary 8,192, 4 prompts of 128
tokens, G 8, completions of 128 tokens. All completions have their full length, so that the work
is known. Results: benchmarks/results/scaling_<device>.json and .png.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from contenders import Ours, Work  # noqa: E402
from qwen2_shape import MIDDLE, SIZES, resized  # noqa: E402
from shapes import Workload, machine, median_and_range, workload  # noqa: E402

from rlm.files import write_json  # noqa: E402

PROMPT = 128
LOAD = {"prompts": 4, "group": 8, "max_tokens": 128, "prompt_tokens": (PROMPT, PROMPT)}
WORK = workload(MIDDLE, **LOAD)
AXES = {
    "group": (2, 4, 8, 16, 32, 64),
    "completion_tokens": (64, 128, 256, 512, 1024),
    "vocabulary": (304, 1024, 8192, 32_768, 151_936),
    "body_weights": tuple(SIZES),
}
LABELS = {"rollout": "sampling", "learn": "learning"}
TITLES = {
    "group": "samples G of a prompt",
    "completion_tokens": "tokens of a completion",
    "vocabulary": "vocabulary",
    "body_weights": "weights of the linear layers",
}


def work_of(axis: str, value) -> Workload:
    """Return the work on the middle shape with one property changed."""
    if axis == "group":
        return replace(WORK, group=value)
    if axis == "completion_tokens":
        return replace(WORK, max_tokens=value)
    if axis == "vocabulary":
        return replace(WORK, vocabulary=value)
    return resized(WORK, *SIZES[value])


def measure(axis: str, value, repeats: int, device: str) -> dict:
    """Return the figures of one point."""
    shape = work_of(axis, value)
    work = Work("random", shape, torch.float32, device)
    ours = Ours(work, 0.0)
    ours.engine.stop_ids = frozenset()  # every completion runs to its maximum
    ours.step(-1)
    turns = [ours.step(turn) for turn in range(repeats)]
    point = {
        name: median_and_range([t[name] for t in turns]) for name in ("rollout", "learn", "step")
    }
    memory = {
        f"{name}_mb": round(max(t[f"{name}_mb"] for t in turns), 1) for name in ("rollout", "learn")
    }
    x = shape.body_weights if axis == "body_weights" else value
    print(axis, x, {k: v["median"] for k, v in point.items()}, memory, flush=True)
    return {"x": x, "tokens": turns[0]["tokens"], **point, **memory}


def slope(points: list[dict], name: str) -> float:
    """Return the exponent of growth between the two largest points, seconds ~ x^exponent."""
    from math import log

    first, last = points[-2:]
    return log(last[name]["median"] / first[name]["median"]) / log(last["x"] / first["x"])


def draw(results: dict, path: Path) -> None:
    """Draw the four curves side by side, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {"rollout": ("#0072B2", "o", "-"), "learn": ("#D55E00", "s", "--")}
    figure, panels = plt.subplots(1, len(AXES), figsize=(13, 3.2), constrained_layout=True)
    for panel, (axis, points) in zip(panels, results["axes"].items(), strict=True):
        for name, (colour, marker, line) in styles.items():
            values = [p[name]["median"] for p in points]
            style = {"color": colour, "marker": marker, "linestyle": line, "label": LABELS[name]}
            panel.plot([p["x"] for p in points], values, **style)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(TITLES[axis])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds of a step")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="steps of each point, default 3")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default 1")
    parser.add_argument("--draw", action="store_true", help="only draw the kept figures again")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = RESULTS / f"scaling_{device}.json"
    if options.draw:
        import json

        results = json.loads(place.read_text(encoding="utf-8"))
    else:
        axes = {
            axis: [measure(axis, value, options.repeats, device) for value in AXES[axis]]
            for axis in options.axes
        }
        slopes = {
            axis: {name: round(slope(points, name), 2) for name in ("rollout", "learn", "step")}
            for axis, points in axes.items()
        }
        results = {
            "machine": machine(device),
            "middle": vars(WORK),
            "axes": axes,
            "slopes": slopes,
        }
        write_json(place, results)
    draw(results, place.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
