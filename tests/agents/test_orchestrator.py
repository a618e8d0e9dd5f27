"""The orchestrator's whole way on the tiny base, with tiny numbers: what it wrote and said."""

import csv
import json
import sys

import pytest

from tests.support.running import ROOT, succeed

sys.path.insert(0, str(ROOT))

pytestmark = pytest.mark.slow

RECIPE = ["--config", ROOT / "configs/orchestrator.yaml"]
SMALL = ["--eval-samples", 8, "--run", "o"]
STORY = (
    "Lisa collects 12 balls a day for 4 days. She buys 2 more balls. How many balls are there now?"
)
NAMES = ["id", "prompt", "output", "reads"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where SFT, with one graph tried a question, and two steps of GRPO have been trained."""
    path = tmp_path_factory.mktemp("orchestrator")
    tried = ["--graph-tries", 1]
    done = succeed("train_sft.py", *RECIPE, *SMALL, *tried, "--max-steps", 200, cwd=path)
    assert "1,000 of 1,000 questions tried with 1 random graph each" in done.stderr + done.stdout
    # After so few steps the brackets are sure only where sampling is sharp.
    steps = [
        "--max-steps",
        2,
        "--temperature",
        0.3,
        "--questions-per-step",
        4,
        "--group-size",
        8,
        "--probe",
        2,
    ]
    more = ["--num-samples", 16, "--run", "g", "--eval-every", 0]
    succeed("train_grpo.py", *RECIPE, *SMALL, *steps, *more, cwd=path)
    return path


def test_grpo_logged_graphs_and_agents(folder):
    with open(folder / "runs/g/log.csv", newline="") as file:
        log = [row for row in csv.DictReader(file) if row["step"] != "0"]  # 0: the start
    wanted = "reward_mean reward_spread loss kl graph_valid_fraction agent_tokens leak_fraction"
    assert set(wanted.split()) <= log[0].keys() and log[1]["validation_accuracy"] != ""
    assert float(log[0]["graph_valid_fraction"]) > 0.5 and float(log[0]["agent_tokens"]) > 5
    lines = (folder / "runs/g/rollouts.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 2 * 4 * 8
    run = [record for record in found if record["agents"]]
    assert len(run) == round(64 * sum(float(row["graph_valid_fraction"]) for row in log) / 2)
    for record in run:
        assert [list(agent) for agent in record["agents"]] == [NAMES, NAMES]
        assert [a["id"] for a in record["graph"]["agents"]] == [a["id"] for a in record["agents"]]
    validation = json.loads((folder / "runs/g/validation.json").read_text())
    assert {"added_value", "direct_accuracy", "direct_votes_accuracy"} <= validation.keys()
    manifest = json.loads(
        (folder / "weights/orchestrator/final_rlm_lora/manifest.json").read_text()
    )
    assert manifest["task"] == "orchestrator"
    manifest = json.loads((folder / "weights/orchestrator/sft_lora/manifest.json").read_text())
    shown = manifest["demonstrations"]
    assert shown["kind"] == "graphs" and shown["graph_tries"] == 1
    assert 20 < shown["right_graphs"] < 200, "of 16 pairs of roles one is right"


def test_evaluate_shows_what_the_graphs_add(folder):
    models = ["--models", "weights/orchestrator/sft_lora"]
    done = succeed("evaluate.py", *RECIPE, *SMALL, *models, cwd=folder)
    assert "| added value" in done.stdout and "the graphs add" in done.stdout
    with open(folder / "runs/o/evaluation-sft_lora.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 8 and {"direct_right", "direct_votes_right", "leak"} <= found[0].keys()


def test_inference_shows_the_graph_and_the_agents_words(folder):
    words = [*RECIPE, "--adapter", "weights/orchestrator/sft_lora", STORY]
    shown = succeed("inference.py", *words, cwd=folder).stdout
    assert shown.count("\nAgent ") == 2 and " reads " in shown and "\nAnswer\n" in shown
    assert '"agents"' in shown.partition("\nGraph\n")[2]
    result = json.loads(succeed("inference.py", *words, "--json", cwd=folder).stdout)
    assert [list(agent) for agent in result["agents"]] == [NAMES, NAMES]
    assert result["repairs"] == [] and len(result["graph"]["agents"]) == 2


@pytest.mark.ci
def test_training_from_python_returns_the_log(tmp_path, monkeypatch):
    import config
    import train_grpo

    monkeypatch.chdir(tmp_path)
    settings = config.GRPOSettings(
        task="orchestrator", questions="addition", model=str(ROOT / "weights/tiny_base"),
        agent_model="weights/tiny_agents_lora", agent_tokens=8, max_tokens=24, max_steps=2,
        num_samples=8, questions_per_step=2, group_size=2, eval_samples=2, probe=0, eval_every=0,
        run="python", adapter="none", output="weights/python", kl_weight=0.1, threads=1,
    )  # fmt: skip
    monkeypatch.setattr(train_grpo, "begin", shaken(train_grpo.begin))
    found = train_grpo.train(settings)
    assert [row["step"] for row in found["log"]] == [0, 1, 2]
    # The base writes sums, not graphs: all of that is counted, and earns nothing.
    first = found["log"][1]
    assert first["graph_valid_fraction"] == 0.0 == first["reward_mean"]
    assert {"agent_tokens", "leak_fraction", "kl", "loss"} <= first.keys()
    assert "added_value" in found and found["graph_valid_fraction"] == 0.0


def shaken(begin):
    """Return `begin` with a LoRA whose B is not zero: without rewards it would stay so."""

    def begin_shaken(settings, began, **more):
        stage = begin(settings, began, **more)
        for name, weight in stage.policy.model.named_parameters():
            if "lora_B" in name:
                weight.data += 0.001
        return stage

    return begin_shaken
