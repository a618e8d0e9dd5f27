"""The picture of the demo's learning curves, and the figures it keeps of their runs."""

import json
from pathlib import Path

from run_tables import rows_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"

# The colours are told apart by the colour-blind, the dashes (a seed each) in black and white.
DASHES = ("-", "--", ":")
LINES = {
    "reward": ("#0072B2", "sampled answers that are right"),
    "steps": ("#D55E00", "answers that work step by step"),
}


def draw(path: Path) -> None:
    """Draw accuracy and the share of worked answers over the GRPO steps, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, constrained_layout=True)
    for axis, part in zip(axes, ("addition", "word_problems"), strict=True):
        runs = json.loads((RESULTS / f"curve_{part}.json").read_text())
        for run, dash in zip(runs, DASHES, strict=False):
            steps = [point["step"] for point in run["points"]]
            for name, (color, label) in LINES.items():
                shares = [100 * point[name] for point in run["points"]]
                named = label if dash == DASHES[0] else None
                axis.plot(steps, shares, dash, color=color, label=named)
        axis.set(title=part.replace("_", " "), xlabel="GRPO step", ylim=(0, 101))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of a step's samples, %")
    axes[0].legend(loc="lower right")
    figure.savefig(path, metadata={"Software": None}, dpi=110)


def keep_curves(part: str, results: list[dict]) -> None:
    """Keep the columns of the runs' log.csv that the picture needs, where the runs are here."""
    from rlm import files

    logs = [(run["seed"], ROOT / run["log"]) for run in results]
    if not all(path.exists() for _, path in logs):
        return
    curves = []
    for seed, path in logs:
        points = [
            {"step": int(row["step"]), "reward": float(row["reward_correctness"]),
             "steps": float(row["step_by_step_fraction"])}
            for row in rows_of(path) if row["reward_correctness"]
        ]  # fmt: skip
        curves.append({"seed": seed, "points": points})
    files.write_json(RESULTS / f"curve_{part}.json", curves)
