"""LoRAs on experts and routers: weights of three dimensions, by peft's `target_parameters`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlm.engine.engine import Engine, Sampling
from rlm.errors import InputError
from rlm.export import export
from rlm.learner.logprobs import pack, token_logprobs
from rlm.models import adapters, loading
from rlm.models.loading import ModelError, add_lora
from rlm.models.policy import Policy
from rlm.rollouts.choice import open_engine
from tests.learner.test_logprobs import (
    assert_same_gradients,
    learned_both_ways,
    random_groups,
)
from tests.models.test_adapter_kinds import PROMPT, TOKENIZER, layers_with_lora, moved
from tests.support.tiny_families import EXPERTS, save, tiny_family
from tests.support.tiny_models import SIZE

NAMES = {"qwen3_moe": "mlp.experts", "gemma4_text": "experts", "gpt_oss": "mlp.experts"}
FORMATS = (torch.float32, torch.bfloat16)
EVERY = [(name, dtype) for name in NAMES for dtype in FORMATS]


def base(name: str, dtype=torch.float32, spread: float = 0.25):
    sizes = {"max_position_embeddings": 512}
    return tiny_family(name, spread=spread, **sizes | EXPERTS.get(name, {})).to(dtype)


def adapted(name: str, dtype=torch.float32, spread: float = 0.25):
    targets = ("attention", "experts")
    return moved(add_lora(base(name, dtype, spread), r=2, alpha=4, seed=0, targets=targets))


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_engine_and_learner_say_what_peft_says_and_so_does_a_reloaded_adapter(
    name, dtype, tmp_path
):
    model = adapted(name, dtype)
    ((rollout,),) = Engine(model, TOKENIZER).generate([PROMPT], 1, Sampling(12, 0.0), seed=0)
    ids, start = PROMPT.ids + rollout.ids, len(PROMPT.ids) - 1
    says = logits(model, ids)
    true = says[start:-1].log_softmax(-1).gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]
    learned, _ = token_logprobs(model, pack([(PROMPT.ids, [rollout.ids])]))
    for found in (torch.tensor(rollout.logprobs), learned.detach()):
        gaps = (found - true).abs()
        assert gaps.max() < 1e-4 if dtype == torch.float32 else gaps.mean() < 0.2
    plain = logits(base(name, dtype), ids)
    assert (says - plain).abs().max() > 0.5
    adapters.save_adapter(model, tmp_path / "adapter", {})  # after forwards, which move weights
    again = loading.load_adapter(base(name, dtype), tmp_path / "adapter", trainable=False)
    assert torch.equal(logits(again, ids), says)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_experts_are_those_of_each_sequence_alone(name):
    model = adapted(name)
    groups = random_groups([(20, [7, 1, 30]), (6, [12])])  # on both sides of the window of 16
    (_, ours), (_, plain) = learned_both_ways(model, groups, size=SIZE)
    assert any("experts" in key for key in ours)
    assert_same_gradients(ours, plain, 1e-4)


@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_the_engine_merges_once_what_peft_merges_at_each_forward(name, dtype):
    model = adapted(name, dtype)
    engine, path = Engine(model, TOKENIZER), f"model.layers.1.{NAMES[name]}"
    outer = model.get_base_model().get_submodule(path)
    for turn in range(2):
        if turn:
            moved(model)
            engine.sync()
        twin = engine._runner.model.network.get_submodule(path)
        assert type(twin) is type(outer.get_base_layer())
        with outer._activate_lora(["default"]), outer.base_layer._activate_lora(["default"]):
            for key in ("gate_up_proj", "down_proj"):
                assert torch.equal(getattr(twin, key), getattr(outer.get_base_layer(), key)), key
        assert not torch.equal(twin.down_proj, outer.get_base_layer().down_proj)
    outer.enable_adapters(False)
    engine.sync()
    twin = engine._runner.model.network.get_submodule(path)
    assert torch.equal(twin.down_proj, outer.get_base_layer().down_proj)


def test_without_room_for_a_copy_experts_run_as_peft_runs_them(monkeypatch):
    model = adapted("gpt_oss")
    monkeypatch.setattr("rlm.engine.inference_model.free_bytes", lambda device: 0)
    engine = Engine(model, TOKENIZER)
    ((rollout,),) = engine.generate([PROMPT], 1, Sampling(12, 0.0), seed=0)
    layer = model.get_base_model().model.layers[1].mlp.experts
    assert engine._runner.model.network.model.layers[1].mlp.experts is layer
    says = logits(model, PROMPT.ids + rollout.ids)
    assert rollout.ids == says[len(PROMPT.ids) - 1 : -1].argmax(1).tolist()


SLOW = pytest.mark.slow
EXPORTS = [
    ("qwen3_moe", "float32"),
    pytest.param("gemma4_text", "float32", marks=SLOW),
    pytest.param("gpt_oss", "float32", marks=SLOW),
    pytest.param("gpt_oss", "bfloat16", marks=SLOW),
]


@pytest.mark.parametrize(("name", "dtype"), EXPORTS)
def test_a_merged_export_is_what_transformers_and_peft_say(name, dtype, tmp_path):
    # Of sharp weights rounding to bfloat16 chooses other experts, and the proof refuses it.
    spread = 0.25 if dtype == "float32" else 0.05
    save(base(name, spread=spread), tmp_path / "base")
    model = adapted(name, spread=spread)
    adapters.save_adapter(model, tmp_path / "adapter", {"base": str(tmp_path / "base")})
    places = ["--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "out")]
    export.main(["merged", *places, "--dtype", dtype, "--device", "cpu"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = PROMPT.ids * 2
    expected = logits(model, ids)
    if dtype == "bfloat16":
        rounded = model.merge_and_unload().bfloat16().state_dict()
        for key, weight in merged.state_dict().items():
            assert torch.equal(weight.bfloat16(), rounded[key]), key
    else:
        torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=1e-4)


def test_a_router_learns_only_where_it_is_asked_for():
    options = dict(r=2, alpha=4, seed=0)
    routers = {"qwen3_moe": "mlp.gate", "gemma4_text": "router.proj", "gpt_oss": "mlp.router"}
    for name, router in routers.items():
        for targets in (("all-linear",), ("all-linear", "experts")):
            model = add_lora(base(name), **options, targets=targets)
            learned = {n for n, _ in model.named_modules() if n.endswith(".lora_A")}
            assert learned and not any(router in n for n in learned), (name, targets)
            assert any(NAMES[name] in n for n in learned) == ("experts" in targets)
        assert layers_with_lora(add_lora(base(name), **options, targets=("router",))) == {router}


def test_a_shared_expert_whose_names_peft_takes_for_the_experts_is_left_out():
    model = moved(add_lora(base("qwen3_next", spread=0.1), r=2, alpha=4, seed=0))
    learned = layers_with_lora(model)
    assert {"mlp.shared_expert_gate", "self_attn.q_proj", "linear_attn.out_proj"} <= learned
    assert not any("experts" in name or "shared_expert." in name for name in learned)
    ((rollout,),) = Engine(model, TOKENIZER).generate([PROMPT], 1, Sampling(6, 0.0), seed=0)
    says = logits(model, PROMPT.ids + rollout.ids)
    assert rollout.ids == says[len(PROMPT.ids) - 1 : -1].argmax(1).tolist()
    (_, ours), (_, plain) = learned_both_ways(model, random_groups([(20, [7])]), size=SIZE)
    assert_same_gradients(ours, plain, 1e-4)
    with pytest.raises(ModelError, match=r"--lora-targets up_proj: peft takes .* use experts, or"):
        add_lora(base("qwen3_next"), r=2, alpha=4, seed=0, targets=("up_proj",))


def test_vllm_is_refused_an_adapter_of_experts():
    policy = Policy(adapted("gpt_oss"), TOKENIZER, "gpt", {})
    with pytest.raises(InputError, match=r"--engine vllm: .* experts or a router, .* --engine own"):
        open_engine(policy, "vllm", own={}, vllm=lambda: None)


def test_dropout_on_experts_is_refused():
    with pytest.raises(ModelError, match=r"--lora-dropout 0.1: with the target experts there can"):
        add_lora(base("gpt_oss"), r=2, alpha=4, seed=0, dropout=0.1, targets=("experts",))
