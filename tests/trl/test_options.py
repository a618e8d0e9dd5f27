"""GRPO's settings in TRL's words, and which of them may be given: pure, without trl."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from rlm.errors import InputError
from rlm.trl.options import (
    FREE,
    NEEDS,
    OURS,
    config_fields,
    loss_fields,
    micro_batch_rows,
    read_options,
)
from settings.grpo import TRL_CANNOT
from tests.support.fuzzing import VALUES, cases
from tests.support.running import ROOT

STEP = {
    "steps": 5, "questions": 3, "group_size": 4, "updates": 2, "rows": 6, "temperature": 0.7,
    "max_tokens": 20, "learning_rate": 1e-3, "max_grad_norm": 0.5, "loss": "dapo",
    "clip_low": 0.2, "clip_high": 0.28, "kl_weight": 0.01, "advantage_scale": "batch",
    "keep_truncated": False, "seed": 7, "options": {},
}  # fmt: skip


def test_a_step_in_trls_words():
    found = config_fields(**STEP)
    assert found == {
        "max_steps": 10,  # 5 batches, each learned from twice
        "num_iterations": 2,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,  # 3 questions * 4 samples / 6
        "num_generations": 4,
        "max_completion_length": 20,
        "temperature": 0.7,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
        "beta": 0.01,
        "scale_rewards": "batch",
        "mask_truncated_completions": True,
        "shuffle_dataset": False,
        "seed": 7,
        "logging_steps": 2,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
    }
    assert not config_fields(**STEP | {"keep_truncated": True})["mask_truncated_completions"]


@pytest.mark.parametrize(
    "loss, wanted",
    [
        ("grpo", ("grpo", "token", 0.28)),
        ("dr_grpo", ("dr_grpo", "token", 0.28)),
        ("bnpo", ("bnpo", "token", 0.28)),
        ("cispo", ("cispo", "token", 1.28)),  # TRL's is the bound itself
        ("gspo", ("grpo", "sequence", 0.28)),  # TRL has no loss of that name
        ("luspo", ("luspo", "sequence", 0.28)),
        ("sapo", ("sapo", "token", 0.28)),
    ],
)
def test_a_loss_in_trls_words(loss, wanted):
    found = loss_fields(loss, 0.2, 0.28)
    kinds = (found["loss_type"], found["importance_sampling_level"])
    assert (*kinds, pytest.approx(found["epsilon_high"])) == wanted and found["epsilon"] == 0.2


@cases(60)
@given(st.integers(1, 400), st.integers(1, 600), st.integers(0, 5000))
def test_a_micro_batch_divides_the_step_and_keeps_to_the_budget(completions, longest, budget):
    rows = micro_batch_rows(completions, longest, budget)
    assert completions % rows == 0
    assert rows == 1 or (rows * longest <= budget if budget else rows <= 8)


def test_options_win_and_are_checked_against_the_step():
    options = {"per_device_train_batch_size": 12, "loss_type": "sapo", "top_p": 0.9}
    found = config_fields(**STEP | {"options": options})
    assert found["gradient_accumulation_steps"] == 1 and found["loss_type"] == "sapo"
    assert found["top_p"] == 0.9
    with pytest.raises(InputError, match=r"5: a step's 12 .* use one of 1, 2, 3, 4, 6, 12$"):
        config_fields(**STEP | {"options": {"per_device_train_batch_size": 5}})


@pytest.mark.parametrize(
    "given, said",
    [
        ({"beta": 0.1}, "beta: set by --kl-weight; free are top_p, "),
        ({"optim": "sgd"}, "optim: no field that is free; use top_p, "),
        ({"push_to_hub": True}, "push_to_hub: no field"),
        ({"loss_type": "dapo"}, "loss_type dapo: use --loss, or sapo, luspo, vespo here"),
        ({"loss_type": 3}, "loss_type: not a text"),
        ({"top_k": 1.5}, "top_k: not a whole number"),
        ({"top_k": True}, "top_k: not a whole number"),
        ({"top_p": "0.9"}, "top_p: not a number"),
        ({"top_p": float("nan")}, "top_p: not finite"),
        ({"delta": 10**400}, "delta: not finite"),
        ({"top_p": 1.5}, "top_p 1.5: use above 0, 1 at most"),
        ({"top_k": -1}, "top_k -1: use 0 or more"),
        ({"per_device_train_batch_size": 0}, "size 0: use above 0"),
        ({"importance_sampling_level": "word"}, "use token or sequence"),
        ({"use_bias_correction_kl": 1}, "use_bias_correction_kl: not true or false"),
        ({"sapo_temperature_pos": 1.0}, 'nothing without loss_type "sapo"'),
        ({"entropy_target": 1.0}, "nothing without use_adaptive_entropy true"),
        ("[1]", "no mapping"),
        ("{top_p: 1}", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (None, "no mapping"),
    ],
)
def test_an_option_that_cannot_be_is_told(given, said):
    with pytest.raises(InputError) as refused:
        read_options(given)
    assert said in str(refused.value)


def test_an_option_may_be_null_and_come_as_json():
    assert read_options('{"top_p": 0.9, "min_p": null}') == {"top_p": 0.9}
    assert read_options("") == {} == read_options({})


@cases(200)
@given(VALUES | st.dictionaries(st.sampled_from([*FREE, *OURS]), VALUES, max_size=3))
def test_arbitrary_options_come_out_plain_or_in_one_line(value):
    try:
        found = read_options(value)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert json.loads(json.dumps(found, allow_nan=False)) == found and set(found) <= set(FREE)


def settings(*words) -> config.GRPOSettings:
    return config.load(config.GRPOSettings, ["--adapter", "none", *map(str, words)])


GIVEN = {
    "replace_dead_groups": ["--replace-dead-groups", "1"], "budget": ["--budget", "5m"],
    "save_every": ["--save-every", "5"], "resume": ["--resume", "runs/x"],
    "probe": ["--probe", "4"], "check_only": ["--check"], "quantize": ["--quantize", "4bit"],
    "engine": ["--engine", "vllm", "--vllm-url", "http://a:1"],
    "vllm_url": ["--vllm-url", "http://a:1"], "importance_cap": ["--importance-cap", "3"],
    "canary_tolerance": ["--canary-tolerance", "1"], "curriculum": ["--curriculum"],
    "ahead": ["--ahead", "1", "--vllm-url", "http://a:1"],
    "reference_every": ["--reference-every", "2", "--kl-weight", "0.1"],
    "entropy_share": ["--entropy-share", "0.2"], "entropy_bonus": ["--entropy-bonus", "0.01"],
}  # fmt: skip


@pytest.mark.parametrize("name", TRL_CANNOT)
def test_what_trl_cannot_do_is_refused_and_its_default_is_not(name, capsys):
    with pytest.raises(SystemExit):
        settings("--backend", "trl", *GIVEN[name])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {GIVEN[name][0]}") and "--backend trl" in said
    assert settings(*GIVEN[name]).backend == "own"


def test_what_changes_nothing_with_trl_may_stand_there():
    words = ["--save-every", 0, "--probe", 0, "--resume", "never"]
    assert settings("--backend", "trl", *words).backend == "trl"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--trl-options", '{"top_p": 0.9}'], "only with --backend trl"),
        (["--backend", "trl", "--loss", "grpo", "--trl-options", '{"loss_type": "sapo"}'],
         "--loss grpo: does nothing with loss_type sapo"),
        (["--backend", "trl", "--clip-low", "0.1", "--trl-options", '{"loss_type": "vespo"}'],
         "--clip-low 0.1: does nothing"),
        (["--backend", "trl", "--loss", "gspo", "--trl-options",
          '{"importance_sampling_level": "token"}'], "--loss gspo"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(words, said, capsys):
    with pytest.raises(SystemExit):
        settings(*words)
    assert said in capsys.readouterr().err


def test_settings_made_in_python_are_checked_too():
    import train_grpo

    given = {"backend": "trl", "budget": "5m", "adapter": "none"}
    with pytest.raises(InputError, match="budget 5m: not with --backend trl"):
        train_grpo.train(config.GRPOSettings(model=str(ROOT / "weights/tiny_base"), **given))


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert settings().backend == "own"
    with pytest.raises(SystemExit):
        settings("--backend", "trl")
    assert "one process" in capsys.readouterr().err


def test_the_stage_of_a_file_takes_its_options(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("grpo: {backend: trl, trl_options: {loss_type: sapo, sapo_temperature_pos: 2}}")
    found = config.load(config.GRPOSettings, ["--config", str(path), "--adapter", "none"])
    assert found.trl_options == {"loss_type": "sapo", "sapo_temperature_pos": 2}


def test_every_name_is_a_field_of_trls_config():
    from trl import GRPOConfig

    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(FREE) | set(OURS) <= fields and not set(FREE) & set(OURS)
    assert set(config_fields(**STEP)) <= fields
    assert all(any(name.startswith(start) for name in FREE) for start in NEEDS)


def test_refused_options_import_neither_torch_nor_trl():
    code = (
        "import sys, config\n"
        "try: config.load(config.GRPOSettings, ['--trl-options', '{\"a\": 1}'])\n"
        "except SystemExit: assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
