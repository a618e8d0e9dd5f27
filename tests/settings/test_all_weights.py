"""--train full: its defaults, and what does not go with it, each refused in one line."""

import json

import pytest

import config
from config import EvaluateSettings, GRPOSettings, InferenceSettings, SFTSettings, TrainSettings
from tests.support.running import ROOT

TINY = ["--model", str(ROOT / "weights/tiny_base")]
LORA = ROOT / "weights/final_rlm_lora"
FULL = [*TINY, "--train", "full"]


def refused(capsys, cls, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        config.load(cls, [*argv])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def whole(tmp_path):
    """A folder that looks like a whole model made of the tiny base."""
    folder = tmp_path / "weights" / "sft_full"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((ROOT / "weights/tiny_base" / name).read_bytes())
    manifest = {"train": "full", "base": TINY[1], "format": "solution", "instruction_role": "both"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_rates_outputs_and_learner_are_those_of_all_weights():
    sft, lora = (config.load(SFTSettings, argv) for argv in (FULL, TINY))
    assert (sft.learning_rate, lora.learning_rate) == (pytest.approx(3e-4), 3e-3)
    assert (sft.backend, lora.backend) == ("own", "trl")
    assert (sft.output, lora.output) == ("weights/sft_full", "weights/sft_lora")
    assert sft.learning() == {"full": True} and lora.learning()["lora"]["r"] == 16
    prep = config.load(SFTSettings, [*FULL, "--stage", "prep"])
    assert prep.output == "weights/sft_prep_full"
    grpo = config.load(GRPOSettings, [*FULL, "--adapter", "none"])
    assert grpo.learning_rate == pytest.approx(1e-4) and grpo.output == "weights/final_rlm_full"


def test_auto_is_what_the_stage_before_has_left(whole):
    weights = ["--weights", str(whole.parent)]
    found = config.load(GRPOSettings, [*FULL, *weights])
    assert found.adapter == str(whole) and found.format == "solution"
    assert config.load(GRPOSettings, [*TINY, *weights]).adapter is None


def test_a_whole_model_has_the_defaults_of_what_it_was_made_of(whole):
    for argv in (["--model", whole], ["--adapter", whole], [*TINY, "--adapter", whole]):
        found = config.load(InferenceSettings, [str(word) for word in argv])
        assert (found.model, found.adapter) == (TINY[1], str(whole))
        assert (found.format, found.role, found.max_tokens) == ("solution", "both", 160)
    measured = config.load(EvaluateSettings, [*TINY, "--models", f"base,{whole}"])
    assert measured.candidates()[1] == (str(whole), TINY[1], str(whole))
    # It stands on nothing: the base need not be there.
    manifest = {"train": "full", "base": "weights/gone", "format": "think"}
    (whole / "manifest.json").write_text(json.dumps(manifest))
    assert config.load(InferenceSettings, ["--adapter", str(whole)]).model == "weights/gone"
    (whole / "model.safetensors").unlink()


def test_a_whole_model_without_weights_is_refused(capsys, whole):
    (whole / "model.safetensors").unlink()
    assert "has no weights" in refused(capsys, InferenceSettings, "--adapter", str(whole))


def test_both_stages_of_train_learn_the_same_way(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("sft: {lora_r: 8, learning_rate: 0.001}\ngrpo: {kl_weight: 0.1}\n")
    both = config.load(TrainSettings, [*FULL, "--config", str(file)])
    sft, grpo = both.sft(), both.grpo()  # what a file says of a LoRA is for trainings of one
    assert (sft.train, grpo.train, sft.backend) == ("full", "full", "own")
    assert grpo.adapter == sft.output == "weights/sft_full"
    assert sft.learning_rate == 0.001 and grpo.learning_rate == pytest.approx(1e-4)
    assert both.evaluate().models == ["base", "weights/sft_full", "weights/final_rlm_full"]


@pytest.mark.parametrize(
    ("cls", "argv", "says"),
    [
        (SFTSettings, ["--quantize", "4bit"], "--quantize 4bit: weights in 4 bits cannot learn"),
        (SFTSettings, ["--lora-r", "8"], "--lora-r 8: --train full has no LoRA; leave it out"),
        (GRPOSettings, ["--rslora"], "--rslora: --train full has no LoRA; leave it out"),
        (SFTSettings, ["--backend", "trl"], "--backend trl: its optimiser keeps no float32 copy"),
        (GRPOSettings, ["--backend", "trl"], "--backend trl: its optimiser keeps no float32 copy"),
        (GRPOSettings, ["--engine", "vllm"], "--engine vllm: vllm is handed a LoRA"),
        (GRPOSettings, ["--vllm-url", "http://a:1"], "--vllm-url http://a:1: vllm is handed a"),
        (GRPOSettings, ["--adapter", str(LORA)], "final_rlm_lora: a LoRA, of which"),
        (SFTSettings, ["--task", "orchestrator"], "--train full: the orchestrator's agents run on"),
        (TrainSettings, ["--quantize", "4bit"], "--quantize 4bit: weights in 4 bits cannot learn"),
        (SFTSettings, ["--train", "ful"], "--train ful: unknown; use lora | full; did you mean"),
        (SFTSettings, ["--train", "lora", "--optimizer", "adamw8bit"], "use --train full"),
        (GRPOSettings, ["--optimizer", "muon"], "--optimizer muon: is for a LoRA"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it(capsys, cls, argv, says):
    said = refused(capsys, cls, *FULL, *argv)
    assert says in said and said.startswith("error: ")


def test_a_sharded_base_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("settings.grpo.sharding_asked", lambda: True)
    said = refused(capsys, GRPOSettings, *FULL, "--adapter", "none")
    assert "--train full: the launcher asks for a sharded base" in said
