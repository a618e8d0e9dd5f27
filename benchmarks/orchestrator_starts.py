"""What does SFT on random graphs leave of a question, where a graph names the roles?

    python benchmarks/orchestrator_starts.py                # goes on where it was stopped
    python benchmarks/tables.py                             # docs/agents.md

The roles of those graphs are chance, so SFT may teach the policy to look away from the question
where it writes them; then GRPO has nothing to tell questions apart by. Here a linear probe (a
logistic regression on the last hidden state, from which the role's first token is predicted) reads
which of the four sums a question takes first and second. It is fitted on some stories and scored on
others. SFT is that of configs/orchestrator.yaml, with the LoRA on different layers; each start is
trained anew. The results go to benchmarks/results/orchestrator_starts.json.
"""

import argparse
import random
import shlex
import subprocess
import sys
from pathlib import Path

from markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PATH = Path(__file__).parent / "results" / "orchestrator_starts.json"
sys.path.insert(0, str(ROOT))
RECIPE = "configs/orchestrator.yaml"
ATTENTION, MLP = "q_proj,k_proj,v_proj,o_proj", "gate_proj,up_proj,down_proj"
RANDOM, ALL = "--graph-tries 0", f"--lora-targets {ATTENTION},{MLP}"
STARTS = {
    "all layers": f"{RANDOM} {ALL}",
    "all layers, rank 4": f"{RANDOM} {ALL} --lora-r 4 --lora-alpha 8",
    "attention alone": f"{RANDOM} --lora-targets {ATTENTION}",
    "MLPs alone": f"{RANDOM} --lora-targets {MLP}",
}
BASE = "the base, before SFT"
SIGNS = "+-*/"
FITTED, SCORED = 800, 400
PENALTY = 2e-3  # of the probe's squared weights, beside its mean loss


def command(name: str, seed: int) -> str:
    """Return the training of a start, as one would type it."""
    place = f"orchestrator-starts/{'-'.join(name.replace(',', '').split())}-{seed}"
    return (
        f"python train_sft.py --config {RECIPE} --seed {seed} --backend own {STARTS[name]} "
        f"--run {place} --output weights/{place} --overwrite --eval-samples 20"
    )


def places(task, graph) -> tuple[list[int], list[int]]:
    """Return the tokens of a graph of two roles, and where the first token of each role stands."""
    from rlm.models.prompts import token_ids

    text = graph.text()
    begins = [i + len('"prompt":"') for i in range(len(text)) if text.startswith('"prompt":"', i)]
    ids, said, found = token_ids(task.tokenizer, text), "", []
    for place, id in enumerate(ids):
        if len(said) in begins:
            found.append(place)
        said += task.tokenizer.decode([id])
    if len(found) != len(begins):
        raise ValueError(f"a token holds the beginning of a role and what is before it: {text}")
    return ids, found


def states(policy, task, stories):
    """Return [2, N, H]: the last hidden states that predict the first and the second role.

    The graphs that lie around them are random ones, as in SFT.
    """
    import torch

    from rlm.agents.graph import random_graph

    rng, rows = random.Random(1), []
    for story in stories:
        prompt = task.prompt(story.question).ids
        ids, found = places(task, random_graph(rng, task.settings.roles, task.limits))
        with torch.no_grad():
            made = policy.model(input_ids=torch.tensor([prompt + ids]), output_hidden_states=True)
        before = [len(prompt) + place - 1 for place in found]
        rows.append(made.hidden_states[-1][0, before].float())
    return torch.stack(rows, dim=1)


def probe(x, y, fitted: int) -> float:
    """Return the share of y [N] that a linear probe reads from x [N, H], fitted on the first ones.

    Logistic regression with standardised inputs, by L-BFGS. y: 0 to 3.
    """
    import torch

    mean, spread = x[:fitted].mean(0), x[:fitted].std(0) + 1e-6
    x = (x - mean) / spread
    weight = torch.zeros(x.shape[1], len(SIGNS), requires_grad=True)
    bias = torch.zeros(len(SIGNS), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss():
        optimizer.zero_grad()
        scores = x[:fitted] @ weight + bias
        found = torch.nn.functional.cross_entropy(scores, y[:fitted])
        found = found + PENALTY * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    read = (x[fitted:] @ weight + bias).argmax(1)
    return float((read == y[fitted:]).float().mean())


def measure(adapter: str | None, seed: int) -> dict:
    """Return how well the probe reads the first and the second sum."""
    import torch

    import config
    from rlm.data.problems import tell
    from rlm.models.policy import open_policy
    from training import tasks

    rng = random.Random(1000 + seed)
    stories = [tell(rng, 2) for _ in range(FITTED + SCORED)]
    words = ["--config", str(ROOT / RECIPE), "--models", "base", "--seed", str(seed)]
    settings = config.load(config.EvaluateSettings, words)
    policy = open_policy(settings.model, adapter, **settings.loading())
    x = states(policy, tasks.task_of(settings, policy), stories)
    signs = torch.tensor([[SIGNS.index(s.sign) for s in story.sums] for story in stories])
    first, second = (probe(x[i], signs[:, i], FITTED) for i in (0, 1))
    return {"first": first, "second": second}


def table() -> str:
    """Return the probe's shares of all starts and seeds."""
    from rlm import files

    found = files.read_object(PATH)
    if not found:
        return "Not measured yet: `python benchmarks/orchestrator_starts.py`."
    seeds = list(found["starts"])
    lines = [["", *(f"seed {s}: first, second" for s in seeds)]]
    for name in (BASE, *STARTS):
        shares = [found["starts"][seed].get(name) for seed in seeds]
        lines.append([name, *(
            f"{100 * s['first']:.1f}, {100 * s['second']:.1f}" if s else "" for s in shares
        )])  # fmt: skip
    return markdown_table(lines)


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[15, 23])
    found = files.read_object(PATH) or {"fitted": FITTED, "scored": SCORED, "starts": {}}
    for seed in parser.parse_args().seeds:
        of_seed = found["starts"].setdefault(str(seed), {})
        for name in (BASE, *STARTS):
            if name in of_seed:
                continue
            adapter, typed = None, {}
            if name != BASE:
                typed = {"command": command(name, seed)}
                words = shlex.split(typed["command"])[1:]
                subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
                adapter = str(ROOT / words[words.index("--output") + 1])
            of_seed[name] = measure(adapter, seed) | typed
            files.write_json(PATH, found)
            print(f"== seed {seed}, {name}: {of_seed[name]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
