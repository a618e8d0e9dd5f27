"""Every script in a subprocess on the tiny base, with tiny numbers: what it wrote and said."""

import json

import pytest
from safetensors.torch import load_file

from tests.support.running import ROOT, rows, start, succeed

pytestmark = [pytest.mark.slow, pytest.mark.ci]

TINY = ROOT / "weights" / "tiny_base"
SMALL = ["--num-samples", 16, "--eval-samples", 4, "--max-tokens", 48, "--model", TINY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where an SFT adapter and a GRPO adapter that goes on from it have been trained."""
    path = tmp_path_factory.mktemp("scripts")
    sft = ["--max-steps", 30, "--packing", "--max-length", 256, "--batch-size", 8]
    succeed("train_sft.py", *SMALL, *sft, cwd=path)
    grpo = ["--max-steps", 2, "--questions-per-step", 4, "--group-size", 4, "--probe", 2]
    # A shaped reward: so early few answers are right, and equal rewards would teach nothing.
    shaped = ["--rewards", "correctness=1,tag_count=0.5", "--kl-weight", 0.01]
    said = succeed("train_grpo.py", *SMALL, *grpo, *shaped, "--learning-rate", 0.01, cwd=path)
    (path / "said").write_text(said.stderr)
    return path


def test_grpo_moved_the_weights_and_logged_every_figure(folder):
    before = load_file(folder / "weights/sft_lora/adapter_model.safetensors")
    after = load_file(folder / "runs/grpo/adapter/adapter_model.safetensors")
    log = rows(folder / "runs/grpo/log.csv")
    assert before.keys() == after.keys()
    manifest = json.loads((folder / "weights/final_rlm_lora/manifest.json").read_text())
    moved = any((before[name] != after[name]).any() for name in before)
    assert moved == (manifest["step"] > 0), "the best of the start and the two steps is kept"
    before_it, *log = log
    assert before_it["step"] == "0" and before_it["validation_accuracy"] != ""
    assert [row["step"] for row in log] == ["1", "2"]
    wanted = (
        "reward_mean reward_spread mixed_fraction all_right_fraction all_wrong_fraction "
        "truncated_fraction unreadable_fraction kl clip_low_fraction clip_high_fraction entropy "
        "gradient_norm sampler_gap skipped_steps empty_reasoning_fraction"
    )
    assert set(wanted.split()) <= log[0].keys()
    times = rows(folder / "runs/grpo/times.csv")
    assert set(times[0]) == {"step", "tokens_per_second", "generate_seconds", "learn_seconds"}
    assert float(log[0]["gradient_norm"]) > 0
    assert float(log[0]["sampler_gap"]) < 1e-4, "sampler and learner are one policy"
    assert log[1]["validation_accuracy"] != "" and log[1]["validation_format_rate"] != ""
    rollouts = (folder / "runs/grpo/rollouts.jsonl").read_text().splitlines()
    assert len(rollouts) == 2 * 4 * 4 and "advantage" in json.loads(rollouts[0])
    assert "probe: reward" in (folder / "said").read_text()


def test_sft_wrote_a_manifest_that_says_where_it_came_from(folder):
    manifest = json.loads((folder / "weights/sft_lora/manifest.json").read_text())
    assert manifest["format"] == "think" and manifest["task"] == "addition"
    assert manifest["stage"] == "full" and manifest["settings"]["packing"] is True
    assert manifest["scores"]["validation"]["questions"] == 4
    assert rows(folder / "runs/sft/log.csv")[-1]["step"] == "30"


def test_evaluate_compares_and_writes_a_row_per_question(folder):
    models = ["--models", "base", "weights/sft_lora", "--samples", 3, "--json"]
    done = succeed("evaluate.py", *models, "--model", TINY, *SMALL[2:6], cwd=folder)
    base, sft = json.loads(done.stdout)
    assert base["format_rate"] < 0.05 and {"pass@1", "pass@3", "majority"} <= sft.keys()
    found = rows(folder / "runs/evaluate/evaluation-sft_lora.csv")
    assert len(found) == 4
    assert {"prompt", "reasoning", "answer", "gold", "verdict", "reason", "tokens"} <= set(found[0])


def test_evaluate_compares_with_a_card_the_figures_and_the_answers(folder):
    words = ["--compare", "base", "sft_lora", "final_rlm_lora", "--output-file", "out/c.csv"]
    words += ["--samples", 2]
    done = succeed("evaluate.py", *words, *SMALL[2:], cwd=folder)
    metrics = json.loads((folder / "out/c.json").read_text())
    assert [model["model"] for model in metrics["models"]] == ["base", "sft_lora", "final_rlm_lora"]
    # each with the first and with the one before
    assert len(metrics["differences"]) == 3 and metrics["asked"]["items"].startswith(
        "4 of the test"
    )
    answers = rows(folder / "out/c.csv")
    for i, model in enumerate(metrics["models"]):
        own = rows(folder / f"out/c-{model['model']}.csv")
        assert [r["verdict"] for r in own] == [r[f"{model['model']}: verdict"] for r in answers]
        assert model["strict"]["count"] == sum(r["verdict"] == "right" for r in own), i
    card = (folder / "out/c.md").read_text()
    assert "# base, sft_lora, final_rlm_lora on the same 4 questions" in card
    sampled = metrics["pass_at_k"]
    for model in sampled["models"]:
        right = [int(r[f"{model['model']}: right samples"]) for r in answers]
        one, both = model["pass_at_k"]
        assert (one["k"], one["share"], both["k"]) == (1, sum(right) / 8, 2)
        assert both["share"] == sum(r > 0 for r in right) / 4
    assert [each["finding"] in done.stdout and each["finding"] in card
            for each in sampled["differences"]] == [True] * 3  # fmt: skip
    assert "base -> final_rlm_lora" in done.stdout and "out/c.md" in done.stdout


def test_evaluate_tries_the_questions_that_were_trained_on(folder):
    words = ["--robustness", "--adapter", "weights/sft_lora", *SMALL[2:6]]
    succeed("evaluate.py", *words, "--model", TINY, cwd=folder)
    metrics = json.loads((folder / "runs/evaluate/robustness.json").read_text())
    names = ["seen", "unseen", "numbers", "larger", "longer"]
    assert [each["set"] for each in metrics["sets"]] == names
    assert (
        "16 questions, 16 of them drawn: made again, with the fing"
        in metrics["asked"]["trained on"]
    )
    seen = {each["set"]: each for each in metrics["overlap"]}
    assert seen["seen"]["same"]["share"] == 1.0 and seen["unseen"]["same"]["share"] == 0.0
    table = rows(folder / "runs/evaluate/robustness.csv")
    assert len(table) == 2 * 5 * 4 and {r["model"] for r in table} == {"base", "weights/sft_lora"}
    assert "## Accuracy" in (folder / "runs/evaluate/robustness.md").read_text()


def test_evaluate_shows_the_spread_over_draws_of_a_template(folder):
    lines = [
        {
            "template": t,
            "instance": i,
            "question": f"Calculate {i} + {n} + 2",
            "answer": f"{i + n + 2}",
        }
        for n, t in enumerate(("a", "b"))
        for i in (11, 25)
    ]
    (folder / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--symbolic", "s.jsonl", "--models", "base", "sft_lora", "--json", "--max-tokens", 48]
    done = succeed("evaluate.py", *words, "--model", TINY, cwd=folder)
    metrics = json.loads(done.stdout)
    assert [m["by_draw"]["draws"] for m in metrics["models"]] == [2, 2]
    assert len(rows(folder / "runs/evaluate/symbolic.csv")) == 8
    assert "By template" in (folder / "runs/evaluate/symbolic.md").read_text()


def test_evaluate_by_the_names_of_a_config_file(folder):
    (folder / "c.yaml").write_text(
        f"common: {{model: {TINY}, max_tokens: 48}}\nmodels: {{sft_model: weights/sft_lora}}\n"
    )
    named = ["--model-path", "sft_model", "--output-file", "mine.csv", "--config", "c.yaml"]
    succeed("evaluate.py", *named, cwd=folder, EVAL_SAMPLES="3")
    assert len(rows(folder / "mine.csv")) == 3
    assert json.loads((folder / "mine.json").read_text())["questions"] == 3


def test_train_runs_both_stages_by_the_known_command_line(tmp_path):
    known = "--mode full --num-samples 16 --seed 1 --sft-epochs 1 --sft-batch-size 8 --sft-lr 0.001"
    more = "--grpo-epochs 0.25 --grpo-samples 8 --grpo-lr 0.001 --no-wandb --log-level INFO"
    places = ["--output-dir", "out", "--model", TINY, "--max-tokens", 32]
    (tmp_path / "c.yaml").write_text("evaluate: {samples: 2}\n")
    words = [*known.split(), *more.split(), *places, "--config", "c.yaml"]
    done = succeed("train.py", *words, cwd=tmp_path, EVAL_SAMPLES="3")
    assert (tmp_path / "out/sft_lora/adapter_model.safetensors").is_file()
    assert (tmp_path / "out/final_rlm_lora/adapter_model.safetensors").is_file()
    summary = json.loads((tmp_path / "runs/train/summary.json").read_text())
    assert [row["model"] for row in summary] == ["base", "sft", "grpo"]
    assert "| base " in done.stdout and "Question:" in done.stdout
    sampled = json.loads((tmp_path / "runs/train/pass_at_k.json").read_text())["pass_at_k"]
    told = [each["finding"] for each in sampled["differences"]]
    page = (tmp_path / "runs/train/report.html").read_text()
    assert len(told) == 3 and all(text in done.stdout and text in page for text in told)
    # 8 questions, a quarter of a pass, 16 a step: one step
    assert done.stderr.count("--grpo-samples 8: GRPO gets that many questions") == 1
    assert [row["step"] for row in rows(tmp_path / "runs/train/grpo/log.csv")] == ["0", "1"]


def test_a_second_run_keeps_the_first_ones_folder(tmp_path):
    words = [*SMALL, "--max-steps", 1, "--overwrite"]
    succeed("train_sft.py", *words, cwd=tmp_path)
    succeed("train_sft.py", *words, "--seed", 1, cwd=tmp_path)
    assert json.loads((tmp_path / "runs/sft/settings.json").read_text())["seed"] == 1
    assert json.loads((tmp_path / "runs/sft.1/settings.json").read_text())["seed"] == 0


def test_stages_go_on_from_each_other(tmp_path):
    prep = ["--stage", "prep", "--max-steps", 3]
    succeed("train_sft.py", *SMALL, *prep, cwd=tmp_path)
    full = ["--stage", "full", "--base-adapter", "weights/sft_prep_lora", "--max-steps", 3]
    succeed("train_sft.py", *SMALL, *full, cwd=tmp_path)
    first, second = (
        load_file(tmp_path / f"weights/{name}/adapter_model.safetensors")
        for name in ("sft_prep_lora", "sft_lora")
    )
    grown = [n for n in first if "lora_B" in n and first[n].any() and (first[n] != second[n]).any()]
    assert grown, "the second stage goes on from B that is not zero"


def test_inference_answers_with_visible_reasoning():
    done = succeed("inference.py", "Calculate 23 + 15 + 8")
    reasoning, _, answer = done.stdout.partition("\nAnswer\n")
    assert "23 + 15 = 38" in reasoning and "38 + 8 = 46" in reasoning
    assert answer.strip() == "46"
    piped = succeed("inference.py", "--json", stdin="Calculate 23 + 15 + 8\n")
    assert json.loads(piped.stdout)["answer"] == "46"


def test_inference_in_its_other_ways():
    assert succeed("inference.py", stdin="").stdout.count("Question: ") == 3
    several = succeed("inference.py", "--interactive", stdin="Calculate 1 + 2 + 3\nexit\n")
    assert several.stdout.count("Question: ") == 1
    batch = succeed("inference.py", "--batch", "--num-samples", 3).stdout
    assert batch.count("->") == 3 and " of 3 right" in batch


def one_line(done) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TINY)
    model.model.embed_tokens.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "other")
    words = ["--model", tmp_path / "other", "--adapter", folder / "weights/sft_lora"]
    assert "adapter of" in one_line(start("inference.py", *words, "Calculate 1 + 2 + 3"))


def test_a_prompt_that_leaves_no_room_is_told_with_the_numbers():
    said = one_line(start("inference.py", "Calculate 1 + 2 + 3 " * 200, forked=True))
    assert "1024" in said and "tokens" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["--task", "sums"], "word_problems"),
        (["--format", "json"], "solution"),
        (["--model", "tests"], "config.json"),
        (["--task", "jsonl", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "nobody/no-such-model"], "nobody/no-such-model"),
    ],
)
def test_bad_input_is_one_line(words, said):
    assert said in one_line(start("train_grpo.py", *words, timeout=60))


def test_bad_data_is_one_line_with_its_place(tmp_path):
    words = ["--task", "jsonl", "--data", "d.jsonl", "--model", TINY]
    good = '{"question": "How many is 1 + %d?", "answer": "%d"}\n'
    (tmp_path / "d.jsonl").write_text("".join(good % (n, n + 1) for n in range(50)) + "{oops\n")

    def refusal() -> str:
        done = start("train_grpo.py", *words, cwd=tmp_path, forked=True)
        *told, last = done.stderr.splitlines()  # what is told before is how the file was taken
        assert done.returncode == 2 and last.startswith("error: ")
        assert all(line.startswith("d.jsonl: ") for line in told)
        return last

    assert "d.jsonl:51" in refusal()
    (tmp_path / "d.jsonl").write_text(good % (1, 2) + '{"question": "?", "answer": "many"}\n')
    assert "d.jsonl:2" in refusal()
    assert "--group-size 1" in one_line(start("train_grpo.py", "--group-size", 1))
