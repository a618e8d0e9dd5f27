"""Settings: their order, their checks, their messages, and how fast they answer."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import config
from config import (
    EvaluateSettings,
    GRPOSettings,
    InferenceSettings,
    ServeSettings,
    SFTSettings,
    TrainSettings,
)
from rlm.cli.layers import describe
from rlm.models import lookup
from rlm.run import log
from settings import evaluation, shared

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [SFTSettings, GRPOSettings, EvaluateSettings, InferenceSettings, TrainSettings]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with a tiny base that has all the files of a model, none of them real."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "weights" / "tiny_base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    for name in ("OUTPUT_DIR", "EVAL_SAMPLES", "TRAIN_SAMPLES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def adapter(path: str, base: str = "weights/tiny_base", format: str = "think") -> str:
    folder = Path(path)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "manifest.json").write_text(json.dumps({"base": base, "format": format}))
    return path


def file(content, name="settings.yaml") -> str:
    Path(name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return name


def refused(capsys, cls, *argv) -> str:
    """The one line on stderr; exit code 2."""
    with pytest.raises(SystemExit) as stop:
        config.load(cls, list(argv))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").strip()


# --- order -----------------------------------------------------------------------------------


def test_flags_over_environment_over_own_section_over_common_over_default(monkeypatch):
    path = file({"common": {"seed": 1, "max_tokens": 11, "lora_r": 4, "eval_samples": 21},
                 "grpo": {"max_tokens": 12, "lora_r": 5, "eval_samples": 22},
                 "sft": {"max_tokens": 99}})  # fmt: skip
    monkeypatch.setenv("RLM_LORA_R", "6")
    monkeypatch.setenv("RLM_EVAL_SAMPLES", "23")
    settings = config.load(GRPOSettings, ["--config", path, "--eval-samples", "24"])
    assert settings.seed == 1  # common
    assert settings.max_tokens == 12  # own section
    assert settings.lora_r == 6  # environment
    assert settings.eval_samples == 24  # flag
    assert settings.group_size == 8  # default


def test_names_without_prefix_come_from_the_environment_below_the_prefixed(monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", "out")
    monkeypatch.setenv("EVAL_SAMPLES", "7")
    monkeypatch.setenv("TRAIN_SAMPLES", "9")
    monkeypatch.setenv("RLM_EVAL_SAMPLES", "8")
    settings = config.load(SFTSettings, [])
    assert settings.output == "out/sft_lora"
    assert (settings.num_samples, settings.eval_samples) == (9, 8)


def test_python_reads_neither_environment_nor_command_line(monkeypatch):
    monkeypatch.setenv("RLM_GROUP_SIZE", "3")
    assert GRPOSettings().group_size == 8


def test_json_file_and_yaml_file_mean_the_same():
    content = {"grpo": {"learning_rate": 0.001, "rewards": {"correctness": 2, "integer": 0.5}}}
    both = [file(content), file(json.dumps(content), "settings.json")]
    one, other = (config.load(GRPOSettings, ["--config", path]).dump() for path in both)
    assert {**one, "config": ""} == {**other, "config": ""}


def test_a_number_that_yaml_takes_for_a_text_is_a_number():
    path = file("grpo:\n  learning_rate: 1e-3\n")
    assert config.load(GRPOSettings, ["--config", path]).learning_rate == 0.001


def test_dump_is_plain_json_and_makes_the_same_settings_again():
    settings = config.load(GRPOSettings, ["--digits", "2-3", "--rewards", "correctness=2"])
    again = GRPOSettings(**json.loads(json.dumps(settings.dump())))
    assert again.dump() == settings.dump()


def test_defaults_follow_the_model():
    tiny, other = GRPOSettings(), GRPOSettings(model="Qwen/Qwen2.5-0.5B")
    assert (tiny.learning_rate, tiny.max_tokens) == (1e-3, 160)
    # None: by the width, once the model is there (training/rates.py).
    assert (other.learning_rate, other.max_tokens) == (None, 512)
    assert (SFTSettings().learning_rate, SFTSettings(model="a/b").learning_rate) == (3e-3, None)


# --- wrong input -----------------------------------------------------------------------------

BAD = [
    (GRPOSettings, ["--token-budget", "63"], "--token-budget 63: too few tokens; use 64 or more"),
    (GRPOSettings, ["--group-size", "1"], "--group-size 1: a group needs at least 2 samples to have"
     " a mean to beat; use 2 or more"),
    (GRPOSettings, ["--group-size", "x"], "--group-size x: not a whole number; use 2 or more"),
    (GRPOSettings, ["--group-size"], "--group-size: a value is missing; see --help"),
    (GRPOSettings, ["--gruop-size", "4"], "--gruop-size: unknown flag; did you mean --group-size?"),
    (GRPOSettings, ["--group", "4"], "--group: unknown flag"),
    (GRPOSettings, ["--learning-rate", "nan"], "--learning-rate nan: out of range; use above 0"),
    (GRPOSettings, ["--lora-alpha", "inf"], "--lora-alpha inf: out of range; use above 0"),
    (GRPOSettings, ["--temperature", "0"], "--temperature 0: out of range; use above 0"),
    (GRPOSettings, ["--rewards", "correctness=0"], "--rewards correctness=0: all weights are 0"),
    (GRPOSettings, ["--rewards", "correctness=x"], "--rewards correctness=x: use NAME=WEIGHT"),
    (GRPOSettings, ["--rewards", "integr=1"], "--rewards integr=1: no reward integr; did you"),
    (GRPOSettings, ["--loss", "ppo"], "--loss ppo: unknown; use grpo | dapo | bnpo"),
    (SFTSettings, ["--task", "additon"], "--task additon: unknown; use addition | word_problems | "
     "mixed | gsm8k | math | math500 | aime | choice | openmath | openmath2 | jsonl | "
     "orchestrator; did you mean addition?"),
    (SFTSettings, ["--format", "plain"], "--format plain: unknown; use think | xml | solution"),
    (SFTSettings, ["--digits", "3-1"], "--digits 3-1: not a range; use 1 to 9"),
    (SFTSettings, ["--seed", "-1"], "--seed -1: out of range; use 0 to 4294967295"),
    (SFTSettings, ["--epochs", "0"], "--epochs 0: out of range; use above 0, at most 1000"),
    (SFTSettings, ["--num-samples", "0"], "--num-samples 0: task addition has no end"),
    (SFTSettings, ["--task", "jsonl"], "--task jsonl: needs the file; give it with --data"),
    (SFTSettings, ["--data", "weights"], "--data weights: task addition makes its own"),
    (SFTSettings, ["--task", "gsm8k", "--data", "no"], "--data no: no such file or folder"),
    (SFTSettings, ["--model", "weights"], "--model weights: the folder has no config.json"),
    (SFTSettings, ["--model", "./nothing"], "--model ./nothing: no folder ./nothing; give a"),
    (SFTSettings, ["--model", "weights/typo"], "--model weights/typo: no folder weights/typo"),
    (SFTSettings, ["--base-adapter", "weights/no"], "--base-adapter weights/no: no folder"),
    (SFTSettings, ["--tracker", "mlflow"], "--tracker mlflow: no tracker mlflow; use wandb | "
     "trackio | tensorboard"),
    (SFTSettings, ["--tracker", "wandb,tracio"], "--tracker wandb,tracio: no tracker tracio; use "
     "wandb | trackio | tensorboard; did you mean trackio?"),
    (SFTSettings, ["--run", "../x"], "--run ../x: a name of letters"),
    (SFTSettings, ["--config", "no.yaml"], "--config no.yaml: No such file or directory; give"),
    (EvaluateSettings, ["--models", "base,./no"], "--models ./no: no folder ./no"),
    (EvaluateSettings, ["--samples", "4", "--temperature", "0"], "--samples 4: greedy samples"),
    (InferenceSettings, ["--interactive", "--batch"], "--interactive and --batch: two ways"),
    (InferenceSettings, ["Calculate", "2"], "'2': one word too many; put a text with spaces in"),
    (InferenceSettings, ["--checkpoint", "no"], "--checkpoint no: no folder no; train it first"),
    (TrainSettings, ["--grpo-samples", "-1"], "--grpo-samples -1: out of range; use 0 or more"),
    (TrainSettings, ["--grpo-group-size", "1"],
     "--grpo-group-size 1: a group needs at least 2 samples"),
    (TrainSettings, ["--sft-checkpoint", "none", "--mode", "all"], "--mode all: unknown; use sft"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "argv", "message"), BAD, ids=[" ".join(b[1]) for b in BAD])
def test_wrong_flags_are_told_in_one_line(capsys, cls, argv, message):
    assert refused(capsys, cls, *argv).startswith(message)


FILES = [
    ("grop: {}", "settings.yaml: grop: unknown section; did you mean grpo?"),
    ("grpo: {gruop_size: 4}", "settings.yaml: gruop_size: unknown setting in grpo; did you mean "
     "group_size?"),
    ("sft: {group_size: 4}", "settings.yaml: group_size: unknown setting in sft"),
    ("common: {xyz: 4}", "settings.yaml: xyz: unknown setting in common"),
    ("grpo: {group_size: 1}", "settings.yaml: grpo: group_size: 1: a group needs at least 2"),
    ("grpo: {group_size: true}", "settings.yaml: grpo: group_size: true: not a whole number"),
    ("common: {task: chess}", "settings.yaml: common: task: chess: unknown; use addition"),
    ("grpo: 3", "settings.yaml: grpo: a section holds"),
    ("- 1", "settings.yaml: not a mapping"),
    ("grpo: {seed: 1, seed: 2}", "settings.yaml:1: seed stands twice; keep one"),
    ("grpo:\n\tseed: 1", "settings.yaml:2: not YAML"),
    ("models: {base: x}", "settings.yaml: models: base is the base model's own name"),
    ("common: {model: [a]}", 'settings.yaml: common: model: ["a"]: Input should be a valid string'),
    ("common: {adapter: no}", "settings.yaml: common: adapter: false: Input should be a valid"),
    ("grpo:\n  seed: 2026-02-30", "settings.yaml:2: not YAML: timestamp cannot be read (day"),
    ("common: {run: &a [*a]}", "settings.yaml: common: run: [[...]]: Input should be a valid"),
    ("[" * 5000, "settings.yaml: nested too deeply"),
    ('"a\\nb": 1', "settings.yaml: a\\nb: unknown section"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FILES, ids=[f[0] for f in FILES])
def test_a_wrong_file_is_told_in_one_line(capsys, content, message):
    assert refused(capsys, GRPOSettings, "--config", file(content)).startswith(message)


def test_a_wrong_json_file_is_told_in_one_line(capsys):
    def said(content: str) -> str:
        return refused(capsys, GRPOSettings, "--config", file(content, "s.json"))

    assert said('{"grpo": {"seed": 1, "seed": 2}}') == "s.json: seed stands twice; keep one"
    assert said('{"grpo":\n 1,}').startswith("s.json:2: not JSON")
    assert said('{"grpo": {"seed": %s}}' % ("1" * 5000)).startswith("s.json: not JSON: Exceeds")


def test_names_for_models_stand_in_the_file_only(capsys, monkeypatch):
    monkeypatch.setenv("RLM_NAMED_MODELS", "{}")
    assert refused(capsys, SFTSettings) == "RLM_NAMED_MODELS: stands in the file of --config only"


def test_a_wrong_environment_is_told_in_one_line(capsys, monkeypatch):
    monkeypatch.setenv("RLM_GROUP_SIZE", "1")
    assert refused(capsys, GRPOSettings).startswith("RLM_GROUP_SIZE=1: a group needs")
    monkeypatch.delenv("RLM_GROUP_SIZE")
    monkeypatch.setenv("RLM_GROUP_SZIE", "4")
    message = "RLM_GROUP_SZIE: unknown variable; did you mean RLM_GROUP_SIZE?"
    assert refused(capsys, SFTSettings) == message


def test_foreign_variables_are_left_alone(monkeypatch):
    monkeypatch.setenv("RLM_LICENSE_SERVER", "x")
    assert config.load(SFTSettings, []).seed == 0


def test_a_model_without_weights_is_refused(capsys, place):
    (place / "weights" / "tiny_base" / "model.safetensors").unlink()
    message = "--model weights/tiny_base: the folder has no weights (*.safetensors)"
    assert refused(capsys, SFTSettings).startswith(message)


def test_trackers_add_up_and_no_wandb_takes_one_away(monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: object())
    given = "--tracker trackio --tracker tensorboard,trackio --wandb-project mine"
    settings = config.load(SFTSettings, given.split())
    assert settings.trackers() == ["trackio", "tensorboard", "wandb"]
    logged = {"trackers": settings.trackers(), "project": "mine", "report_every": 0}
    assert settings.logging() == logged
    assert config.load(SFTSettings, [*given.split(), "--no-wandb"]).trackers() == [
        "trackio", "tensorboard"]  # fmt: skip
    assert config.load(SFTSettings, []).trackers() == []
    monkeypatch.setenv("RLM_TRACKER", "wandb,trackio")
    assert config.load(GRPOSettings, []).trackers() == ["wandb", "trackio"]
    path = file({"common": {"tracker": ["trackio"]}})
    monkeypatch.delenv("RLM_TRACKER")
    assert config.load(TrainSettings, ["--config", path]).grpo().trackers() == ["trackio"]


def test_quiet_leaves_warnings_and_errors():
    assert config.load(EvaluateSettings, ["--quiet"]).process()["log_level"] == "warning"
    more = ["--quiet", "--log-level", "error"]
    assert config.load(GRPOSettings, more).process()["log_level"] == "error"
    assert config.load(GRPOSettings, []).process()["log_level"] == "info"


def test_the_deadline_of_mathematics_is_for_the_whole_process():
    assert config.load(EvaluateSettings, []).process()["math_seconds"] == 2.0
    assert config.load(GRPOSettings, ["--math-seconds", "0.5"]).process()["math_seconds"] == 0.5


def test_what_changes_nothing_is_refused(capsys):
    more = ("--importance-mode", "mask")
    assert "needs --importance-cap above 0" in refused(capsys, GRPOSettings, *more)
    assert config.load(GRPOSettings, [*more, "--importance-cap", "2"]).importance_mode == "mask"
    assert "without --kl-weight" in refused(capsys, GRPOSettings, "--reference-every", "4")
    assert "only with --task orchestrator" in refused(capsys, SFTSettings, "--graph-tries", "4")
    found = config.load(GRPOSettings, ["--reference-every", "4", "--kl-weight", "0.1"])
    assert found.reference_every == 4
    assert config.load(GRPOSettings, ["--dynamic-sampling", "3"]).replace_dead_groups == 3
    for words in (["--curriculum"], ["--entropy-share", "0.2"], ["--optimizer", "muon"]):
        assert "not with --backend trl" in refused(capsys, GRPOSettings, "--backend", "trl", *words)


def test_a_loss_without_a_clip_takes_none(capsys):
    said = refused(capsys, GRPOSettings, "--loss", "vespo", "--clip-low", "0.1")
    assert "--clip-low 0.1: --loss vespo has a soft bound" in said
    assert config.load(GRPOSettings, ["--loss", "luspo", "--clip-low", "0.1"]).clip_low == 0.1


def test_what_a_backend_of_sft_leaves_undone_is_refused(capsys):
    own = ("--backend", "own")
    assert "--packing: not with --backend own" in refused(capsys, SFTSettings, *own, "--packing")
    assert "leave it out, or use --backend own" in refused(
        capsys, SFTSettings, "--token-budget", "512"
    )
    assert "use 64 or more" in refused(capsys, SFTSettings, *own, "--token-budget", "63")
    assert config.load(SFTSettings, [*own, "--token-budget", "64"]).token_budget == 64


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_found_before_training(capsys, monkeypatch, name):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    message = f"--tracker {name}: {name} is not installed; `pip install {name}`, or leave it out"
    assert refused(capsys, GRPOSettings, "--tracker", name) == message


def test_wandb_that_is_not_installed_is_found_before_training(capsys, monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    message = "--wandb-project demo: wandb is not installed; `pip install wandb`, or leave it out"
    assert refused(capsys, SFTSettings, "--wandb-project", "demo").startswith(message)
    assert not config.load(SFTSettings, ["--wandb-project", "demo", "--no-wandb"]).trackers()


def test_a_line_break_in_a_value_stays_one_line(capsys):
    assert "'a\\nb'" in refused(capsys, SFTSettings, "--task", "a\nb")


# --- models by name --------------------------------------------------------------------------


def test_an_adapter_brings_its_base():
    adapter("weights/mine", base="Qwen/Qwen2.5-0.5B")
    for cls, flag in [(InferenceSettings, "--checkpoint"), (GRPOSettings, "--base-model")]:
        settings = config.load(cls, [flag, "weights/mine"])
        assert (settings.model, settings.adapter) == ("Qwen/Qwen2.5-0.5B", "weights/mine")


def test_names_of_the_file_stand_for_paths():
    prep = adapter("weights/prep")
    path = file({"models": {"prep_sft_model": prep}})
    for flag in ("--base-model", "--base-adapter", "--adapter"):
        settings = config.load(SFTSettings, ["--config", path, flag, "prep_sft_model"])
        assert (settings.model, settings.adapter) == ("weights/tiny_base", prep)
    settings = config.load(EvaluateSettings, ["--config", path, "--model-path", "prep_sft_model"])
    assert settings.candidates() == [("prep_sft_model", "weights/tiny_base", prep)]


def test_the_format_is_the_adapters_unless_it_is_given():
    adapter("weights/mine", format="xml")
    for cls, flag in [(InferenceSettings, "--checkpoint"), (GRPOSettings, "--adapter"),
                      (EvaluateSettings, "--models")]:  # fmt: skip
        assert config.load(cls, [flag, "weights/mine"]).format == "xml"
        given = config.load(cls, [flag, "weights/mine", "--format", "solution"])
        assert given.format == "solution"
    assert config.load(InferenceSettings, []).format == "think"


def test_the_base_of_a_comparison_is_the_base_of_its_adapters():
    adapter("weights/mine", base="Qwen/Qwen2.5-0.5B")
    adapter("weights/final_rlm_lora")  # not asked for
    settings = config.load(EvaluateSettings, ["--models", "base", "weights/mine"])
    assert settings.candidates() == [
        ("base", "Qwen/Qwen2.5-0.5B", None),
        ("weights/mine", "Qwen/Qwen2.5-0.5B", "weights/mine"),
    ]


def test_an_adapter_of_an_earlier_run_does_not_decide_the_format_of_a_new_one():
    adapter("weights/sft_lora", format="xml")
    settings = config.load(TrainSettings, ["--mode", "full"])
    stages = [settings.sft(), settings.grpo(), settings.evaluate()]
    assert [stage.format for stage in stages] == ["think"] * 3


def test_auto_is_taken_only_if_it_is_there_and_of_the_model():
    assert config.load(GRPOSettings, []).adapter is None
    adapter("weights/sft_lora")
    assert config.load(GRPOSettings, []).adapter == "weights/sft_lora"
    assert config.load(GRPOSettings, ["--adapter", "none"]).adapter is None
    assert config.load(GRPOSettings, ["--model", "Qwen/Qwen2.5-0.5B"]).adapter is None


def test_an_adapter_of_another_base_is_refused(capsys):
    adapter("weights/mine", base="Qwen/Qwen2.5-0.5B")
    message = refused(capsys, GRPOSettings, "--adapter", "weights/mine", "--model", "gpt2")
    assert message == ("--adapter weights/mine: an adapter of Qwen/Qwen2.5-0.5B, not of gpt2; "
                       "use --model Qwen/Qwen2.5-0.5B")  # fmt: skip


def test_evaluation_compares_base_and_shipped_adapter_by_default():
    assert config.load(EvaluateSettings, []).models == ["base"]
    adapter("weights/final_rlm_lora")
    settings = config.load(EvaluateSettings, [])
    assert settings.models == ["base", "weights/final_rlm_lora"]
    assert config.load(EvaluateSettings, ["--samples", "4"]).temperature == 1.0


# --- evaluate.py ------------------------------------------------------------------------------


def test_compared_models_are_named_as_measured_ones():
    adapter("weights/sft_lora")
    adapter("elsewhere/mine")
    path = file({"models": {"short": "elsewhere/mine"}})
    argv = ["--compare", "base", "sft_lora", "weights/sft_lora", "short", "--config", path]
    named = config.load(EvaluateSettings, ["--models", "sft_lora,short", "--config", path])
    place = "weights/sft_lora"
    assert [c[2] for c in named.candidates()] == [place, "elsewhere/mine"]
    settings = config.build(EvaluateSettings, *config._layers(EvaluateSettings, argv))
    assert [c[2] for c in settings.candidates()] == [None, place, place, "elsewhere/mine"]
    assert EvaluateSettings(**settings.dump()).dump() == settings.dump()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--compare", "base"], "--compare base: one model; name two or more"),
        (["--compare", "base", "one", "--models", "base"], "--compare and --models: two lists"),
        (["--compare", "base", "one", "--robustness"], "--compare and --robustness: each is"),
        (["--robustness", "--symbolic", "."], "--robustness and --symbolic: each is"),
        (["--symbolic", "nowhere"], "--symbolic nowhere: no such file or folder"),
        (["--compare", "one", "two"], "--compare: adapters of the formats think and xml; all get"),
        (["--compare", "one", "weights/one"], "--models one weights/one: one twice"),
    ],
)
def test_what_cannot_be_compared(capsys, argv, message):
    adapter("weights/one")
    adapter("weights/two", format="xml")
    assert refused(capsys, EvaluateSettings, *argv).startswith(message)


def test_one_format_for_all_can_be_chosen():
    adapter("weights/one")
    adapter("weights/two", format="xml")
    argv = ["--compare", "one", "two", "--format", "xml"]
    assert config.load(EvaluateSettings, argv).format == "xml"


def trained(path: str, **settings) -> str:
    folder = adapter(path)
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    (Path(folder) / "manifest.json").write_text(json.dumps(manifest | {"settings": settings}))
    return folder


def test_robustness_asks_what_the_adapter_was_trained_on():
    trained("weights/final_rlm_lora", task="word_problems", problem_steps=[2, 3], max_tokens=256)
    settings = config.load(EvaluateSettings, ["--robustness"])
    assert (settings.task, settings.problem_steps) == ("word_problems", (2, 3))
    assert settings.max_tokens == 256
    given = ["--robustness", "--max-tokens", "99"]
    assert config.load(EvaluateSettings, given).max_tokens == 99
    other = config.load(EvaluateSettings, ["--robustness", "--task", "addition"])
    assert (other.problem_steps, other.max_tokens) == ((2, 4), 160)
    assert config.load(EvaluateSettings, []).task == "addition"
    trained("weights/mine", task="addition", digits=[2, 2])
    named = config.load(EvaluateSettings, ["--robustness", "--models", "base", "mine"])
    assert (named.task, named.digits) == ("addition", (2, 2))
    assert config.load(EvaluateSettings, ["--robustness", "--adapter", "none"]).task == "addition"


# --- train.py --------------------------------------------------------------------------------


KNOWN = """--mode full --num-samples 100 --seed 3 --sft-epochs 2 --sft-batch-size 4 --sft-lr 1e-4
    --grpo-epochs 2 --grpo-samples 60 --grpo-lr 2e-5 --output-dir out --wandb-project demo
    --grpo-group-size 6 --no-wandb --log-level INFO --run mine"""


def test_known_command_line_reaches_the_stages(monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: object())
    settings = config.load(TrainSettings, KNOWN.split())
    sft, grpo, evaluate = settings.sft(), settings.grpo(), settings.evaluate()
    assert (sft.num_samples, sft.seed, sft.epochs, sft.batch_size) == (100, 3, 2, 4)
    assert (sft.learning_rate, sft.output, sft.wandb, sft.log_level) == (
        1e-4, "out/sft_lora", False, "info")  # fmt: skip
    # 2 passes over 60 questions, 16 a step: 120 / 16 rounded up
    assert (grpo.num_samples, grpo.max_steps, grpo.group_size) == (60, 8, 6)
    assert grpo.learning_rate == 2e-5
    assert (grpo.adapter, grpo.output) == ("out/sft_lora", "out/final_rlm_lora")
    assert evaluate.models == ["base", "out/sft_lora", "out/final_rlm_lora"]
    assert (evaluate.seed, sft.run, grpo.run) == (3, "mine/sft", "mine/grpo")


def test_grpo_samples_are_questions_and_a_small_number_of_them_is_doubted():
    few = config.load(TrainSettings, ["--grpo-samples", "16", "--num-samples", "100"])
    assert (few.sft().num_samples, few.grpo().num_samples, few.grpo().group_size) == (100, 16, 8)
    assert few.doubt() == (
        "--grpo-samples 16: GRPO gets that many questions; for that many samples of each question "
        "use --grpo-group-size 16"
    )
    for sure in (["--grpo-samples", "17"], ["--grpo-samples", "8", "--grpo-group-size", "4"], []):
        assert config.load(TrainSettings, sure).doubt() is None
    as_the_stage = config.load(TrainSettings, ["--config", file({"grpo": {"num_samples": 30}})])
    assert as_the_stage.grpo_samples == 0 and as_the_stage.grpo().num_samples == 30


def test_a_stage_reads_its_section_and_train_goes_over_it(monkeypatch):
    path = file({"common": {"max_tokens": 50, "task": "word_problems"},
                 "sft": {"max_tokens": 60, "epochs": 5, "seed": 4},
                 "grpo": {"group_size": 4, "lr_schedule": "linear"},
                 "train": {"seed": 9, "sft_epochs": 2}})  # fmt: skip
    monkeypatch.setenv("RLM_GROUP_SIZE", "5")
    settings = config.load(TrainSettings, ["--config", path])
    sft, grpo = settings.sft(), settings.grpo()
    assert (sft.max_tokens, sft.epochs, sft.seed, sft.task) == (60, 2, 9, "word_problems")
    assert (grpo.max_tokens, grpo.group_size, grpo.lr_schedule, grpo.seed) == (50, 5, "linear", 9)


def test_what_the_file_says_of_comparisons_is_not_for_train(capsys):
    for section in ({"compare": ["base", "weights/mine"]}, {"robustness": True}):
        settings = config.load(TrainSettings, ["--config", file({"evaluate": section})])
        measured = settings.evaluate()
        assert measured.models == ["base", "weights/sft_lora", "weights/final_rlm_lora"]
        assert not measured.compare and not measured.robustness


def test_grpo_alone_starts_from_the_checkpoint(capsys):
    adapter("weights/mine")
    settings = config.load(TrainSettings, ["--mode", "grpo", "--sft-checkpoint", "weights/mine"])
    assert settings.grpo().adapter == "weights/mine"
    assert settings.evaluate().models == ["base", "weights/mine", "weights/final_rlm_lora"]
    message = refused(capsys, TrainSettings, "--sft-checkpoint", "weights/mine")
    assert message.startswith("--sft-checkpoint weights/mine: only --mode grpo starts")


def test_a_wrong_stage_is_found_before_anything_runs(capsys):
    path = file({"grpo": {"group_size": 1}})
    message = refused(capsys, TrainSettings, "--config", path)
    assert message.startswith("settings.yaml: grpo: group_size: 1: a group needs")


# --- recipes, help, speed --------------------------------------------------------------------


def test_a_model_that_make_fetches_is_told(capsys, monkeypatch):
    monkeypatch.setattr(lookup, "FETCHED", {"weights/not_here": "`make it` fetches it"})
    said = refused(capsys, SFTSettings, "--model", "weights/not_here/")
    assert said == "--model weights/not_here/: no folder weights/not_here/; `make it` fetches it"


@pytest.mark.parametrize("cls", [*CLASSES, ServeSettings], ids=lambda cls: cls.script)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_for_every_script(cls, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("the data of own_data.yaml")
    # What `make smollm2` fetches need not be here.
    known = lookup.check_model
    fetched = lambda name, *a, **k: name in lookup.FETCHED or known(name, *a, **k)  # noqa: E731
    for place in (shared, evaluation):
        monkeypatch.setattr(place, "check_model", fetched)
    # The walk through docs/data.md writes its own file; here any will do.
    data = ["--data", str(path)] if path.stem == "own_data" and cls is not ServeSettings else []
    settings = config.load(cls, ["--config", str(path), *data])
    own = (yaml.safe_load(path.read_text()).get(cls.script) or {}).keys()
    assert own <= settings.model_fields_set
    assert settings.weights.startswith("weights/")  # never over the shipped adapter


def test_there_are_recipes():
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("cls", [*CLASSES, ServeSettings], ids=lambda cls: cls.script)
def test_every_flag_has_a_help_with_its_default(cls, capsys):
    with pytest.raises(SystemExit) as stop:
        config.load(cls, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in cls.model_fields.items():
        if name != "named_models":
            assert " ".join(describe(field).split()) in text
            assert len(field.description) > 8 and "default " in describe(field), name
    assert "Common:" in text and ("Server:" if cls is ServeSettings else "Data:") in text


def test_settings_answer_before_anything_heavy_is_imported():
    code = """if True:
        import sys, config
        for argv in (["--help"], ["--group-size", "1"], []):
            try:
                config.load(config.GRPOSettings, argv)
            except SystemExit:
                pass
        heavy = {"torch", "transformers", "trl", "peft", "datasets", "numpy", "accelerate"}
        sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 0.4 s here; five times that leaves room for a busy machine, torch alone takes longer.
    assert time.perf_counter() - start < 2.0
