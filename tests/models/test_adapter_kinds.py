"""Adapters of other kinds than ours and from elsewhere, LoRA's targets, text models in wrappers."""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlm.engine.engine import Engine, Sampling
from rlm.errors import InputError
from rlm.models import adapters, loading, lookup
from rlm.models.loading import ModelError, add_lora
from rlm.models.policy import open_policy, own_tokenizer
from rlm.records import Prompt
from tests.support.tiny_families import save, tiny_family
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
PROMPT = Prompt(list(b"What is 2 + 3?"))
TASK = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
# Kinds that change weights; each far enough from nothing to change the answer.
KINDS = {
    "dora": peft.LoraConfig(r=4, use_dora=True, **TASK),
    "rslora": peft.LoraConfig(r=4, use_rslora=True, **TASK),
    "whole_head": peft.LoraConfig(r=4, modules_to_save=["lm_head"], **TASK),
    "ia3": peft.IA3Config(feedforward_modules=["down_proj"], **TASK),
    "loha": peft.LoHaConfig(r=4, **TASK),
    "oft": peft.OFTConfig(r=2, oft_block_size=0, **TASK),
}


def moved(model):
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "original_module" not in name:
            noise = torch.randn(weight.shape, generator=generator) * 0.2
            weight.data = weight.data + noise
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_changes_weights_answers_as_peft_does(kind, tmp_path):
    torch.manual_seed(0)
    made = moved(peft.get_peft_model(tiny_model("llama"), KINDS[kind]))
    made.save_pretrained(tmp_path / "adapter")
    loaded = loading.load_adapter(tiny_model("llama"), tmp_path / "adapter", trainable=False)
    ((rollout,),) = Engine(loaded, TOKENIZER).generate([PROMPT], 1, Sampling(20, 0.0), seed=0)
    ids = torch.tensor([PROMPT.ids + rollout.ids])
    with torch.no_grad():
        peft_says = made(input_ids=ids).logits[0, len(PROMPT.ids) - 1 : -1]
        base_says = tiny_model("llama")(ids).logits[0, len(PROMPT.ids) - 1 : -1]
    assert rollout.ids == peft_says.argmax(1).tolist() != base_says.argmax(1).tolist()


def test_an_adapter_that_changes_no_weight_is_refused_before_weights_are_read(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="kind PROMPT_TUNING, which changes what the model reads"):
        open_policy("nowhere/at-all", str(tmp_path / "adapter"))


def test_names_that_may_mean_one_model_are_left_to_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")

    def check(base: str, model: str) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        lookup.check_adapter(str(folder), "--adapter adapter", model)

    save(tiny_model(), tmp_path / "one")
    save(tiny_model(seed=1), tmp_path / "like_it")
    save(tiny_model("llama"), tmp_path / "other")
    check("/home/somebody/llama", "meta/llama")  # a path of another machine
    check("/home/somebody/llama", "one")
    check("unsloth/Qwen2.5-0.5B-unsloth-bnb-4bit", "Qwen/Qwen2.5-0.5B")
    check("one", "like_it")  # of one shape: the fingerprint decides
    for base, model in (("one", "other"), ("Qwen/Qwen2.5-0.5B", "gpt2"), ("one", "gpt2")):
        with pytest.raises(InputError, match=f"an adapter of {base}, not of {model}"):
            check(base, model)


def test_an_adapters_own_tokenizer_is_used(tmp_path, caplog):
    caplog.set_level("INFO", logger="rlm")
    model, template = tiny_model(), "{% for m in messages %}{{ m.content }}!{% endfor %}"
    assert own_tokenizer(tmp_path, TOKENIZER, model) is TOKENIZER
    own = byte_tokenizer()
    own.chat_template = template
    own.save_pretrained(tmp_path)
    assert own_tokenizer(tmp_path, TOKENIZER, model).chat_template == template
    assert "its own tokenizer and chat template are used" in caplog.text
    own.add_tokens(["<more>"])
    own.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{SIZE + 1} tokens .* embeddings for {SIZE};"):
        own_tokenizer(tmp_path, TOKENIZER, model)


def layers_with_lora(model) -> set[str]:
    names = [n for n, _ in model.named_parameters() if "lora_A" in n]
    return {n.split(".layers.")[1].partition(".")[2].partition(".lora_A")[0] for n in names}


def test_targets_by_words_and_by_names():
    options = dict(r=4, alpha=8, seed=0)
    attention = {f"self_attn.{x}_proj" for x in "qkvo"}
    mlp = {f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    assert layers_with_lora(add_lora(tiny_model(), **options)) == attention | mlp
    found = add_lora(tiny_model(), **options, targets=("attention",))
    assert layers_with_lora(found) == attention
    found = add_lora(tiny_model(), **options, targets=("q_proj", "mlp.down_proj"))
    assert layers_with_lora(found) == {"self_attn.q_proj", "mlp.down_proj"}
    with pytest.raises(ModelError, match=r"--lora-targets qproj: .*all-linear, .* q_proj"):
        add_lora(tiny_model(), **options, targets=("qproj",))
    with pytest.raises(ModelError, match="--lora-targets experts: Qwen2ForCausalLM has no such"):
        add_lora(tiny_model(), **options, targets=("experts",))


def test_scale_and_dropout_reach_the_layers():
    model = add_lora(tiny_model(), r=4, alpha=8, seed=0, dropout=0.25, rank_stabilized=True)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 8 / math.sqrt(4)
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_experts_learn_and_answer_and_the_router_does_not_learn(name):
    from rlm.learner.logprobs import pack, token_logprobs

    model = add_lora(tiny_family(name), r=2, alpha=4, seed=0, targets=("attention", "experts"))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("experts" in n for n in trained) and not any("router" in n for n in trained)
    moved(model)
    logprobs, _ = token_logprobs(model, pack([(PROMPT.ids, [[65, 66], [67]])]))
    logprobs.sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if "experts" in n and p.requires_grad}
    assert grads and all(g is not None and g.abs().max() > 0 for g in grads.values())
    ((rollout,),) = Engine(model, TOKENIZER).generate([PROMPT], 1, Sampling(12, 0.0), seed=0)
    with torch.no_grad():
        says = model(input_ids=torch.tensor([PROMPT.ids + rollout.ids])).logits[0]
    assert rollout.ids == says[len(PROMPT.ids) - 1 : -1].argmax(1).tolist()


def test_a_wrappers_text_model_is_loaded_alone_and_its_adapters_fit(tmp_path):
    model = tiny_family("gemma3_text")
    save(model, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    text = json.loads((tmp_path / "base" / "config.json").read_text())
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    for inner in ("model.language_model.", "language_model.model."):  # today's names, and older
        head = "lm_head" if inner.startswith("model") else "language_model.lm_head"
        renamed = {
            n.replace("model.", inner, 1) if n.startswith("model.") else n.replace("lm_head", head):
            w.clone() for n, w in weights.items()
        }  # fmt: skip
        renamed["vision_tower.weight"] = torch.zeros(2)
        save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
        loaded, _ = loading.load_base(str(tmp_path / "base"), device="cpu")
        assert type(loaded) is type(model)
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
    gone = {n: w for n, w in renamed.items() if "layers.1.mlp.up_proj" not in n}
    save_file(gone, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not in it"):
        loading.load_base(str(tmp_path / "base"), device="cpu")
    # An adapter that was trained on the wrapper names the text model inside it.
    adapter = moved(add_lora(model, r=4, alpha=8, seed=0))
    adapters.save_adapter(adapter, tmp_path / "adapter", {}, overwrite=False)
    (tmp_path / "adapter" / "manifest.json").unlink()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    inside = {n.replace("model.model.", "model.model.language_model.", 1): w
              for n, w in load_file(file).items()}  # fmt: skip
    save_file(inside, file)
    again = loading.load_adapter(tiny_family("gemma3_text"), tmp_path / "adapter", trainable=False)
    for name, weight in adapter.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
