"""A model as a GGUF file: its tokenizer, weights and Modelfile, and how the command ends."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from rlm.answers.formats import get_format
from rlm.errors import InputError
from rlm.export import export, gguf_tokenizer, gguf_writer, llama_cpp, modelfile, proof
from rlm.models import gguf_file, gguf_rope, loading
from rlm.models.prompts import make_prompt
from rlm.models.templates import chat_text
from tests.support.bpe_tokenizers import BOS_TEMPLATE, FORGETFUL, bpe_tokenizer
from tests.support.tiny_gguf import SPECIAL, TEMPLATE
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install -e '.[gguf]'")

PIECES, ROWS = 302, 308  # of the tokenizer; six rows more are padding
ENDS = SimpleNamespace(eos_token_id=2)
IDS = torch.tensor([[5, 60, 61, 7, 99, 200, 31]])
FAMILIES = {
    "llama": {"attention_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def model_of(family: str, *, seed: int = 0):
    """Return a random model of a family, whose norms and biases are no ones and zeros.

    As with trained models, no row beyond the tokenizer's pieces is ever likely.
    """
    options = dict(vocabulary=ROWS, max_position_embeddings=512, eos_token_id=2, pad_token_id=0)
    model = tiny_model(family, seed=seed, **options | FAMILIES[family])
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += torch.randn(weight.shape, generator=generator) * 0.1
    model.get_output_embeddings().weight.data[PIECES:] = 0.0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `FAMILY` is a base and `FAMILY-lora` its adapter, for two families."""
    path = tmp_path_factory.mktemp("gguf")
    for family, cut in (("qwen3", "qwen2"), ("llama", "smollm")):
        model = model_of(family)
        model.save_pretrained(path / family)
        bpe_tokenizer(cut).save_pretrained(path / family)
        manifest = {"format": "think", "base": str(path / family)}
        loading.save_adapter(tiny_lora(model), path / f"{family}-lora", manifest)
    return path


# The tokenizer.


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "qwen2", "llama-bpe", "dbrx"])
def test_how_a_text_is_cut_up_has_its_name(name):
    found = gguf_tokenizer.read(bpe_tokenizer(name), ENDS, rows=ROWS)
    assert found.pre == name and found.ends == [2] and not found.add_bos
    assert found.tokens[:3] == SPECIAL and found.types[:3] == [3, 3, 3]
    assert found.tokens[300:303] == ["<think>", "</think>", "[PAD302]"]
    assert found.types[299:303] == [1, 4, 4, 5] and len(found.tokens) == ROWS
    left, right = found.merges[0].split(" ")
    assert left + right in found.tokens


def test_a_token_that_begins_a_text_is_written_by_one_of_the_two():
    def add_bos(**facts):
        return gguf_tokenizer.read(bpe_tokenizer(**facts), ENDS, rows=ROWS).add_bos

    assert add_bos(bos=SPECIAL[0], template=BOS_TEMPLATE)
    assert not add_bos(bos=SPECIAL[0]), "the template does not write it"
    assert not add_bos(bos=SPECIAL[1]), "it opens every turn, and is no beginning of a text"
    assert not add_bos(template=None)


def spoiled(change) -> dict:
    parts = json.loads(bpe_tokenizer().backend_tokenizer.to_str())
    change(parts)
    return parts


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda p: p.update(normalizer={"type": "Lowercase"}),
            r"changes the text .* \(Lowercase\)",
        ),
        (lambda p: p["model"].update(type="Unigram"), "of the kind Unigram"),
        (lambda p: p["model"].update(merges=[]), "not a BPE with merges"),
        (lambda p: p["model"].update(dropout=0.1), "dropout 0.1"),
        (lambda p: p["model"].update(ignore_merges=True), "none of dbrx, gpt-2"),
        (lambda p: p["pre_tokenizer"]["pretokenizers"].pop(), "none of dbrx, gpt-2"),
        (lambda p: p.update(pre_tokenizer=None), "not at all"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_told(change, told):
    with pytest.raises(InputError, match=f"cannot be written into a GGUF file: .*{told}"):
        gguf_tokenizer.split_name(spoiled(change))


def test_more_tokens_than_rows_and_a_second_token_of_one_text_are_told():
    with pytest.raises(InputError, match="302 tokens and the model has embeddings for 301"):
        gguf_tokenizer.read(bpe_tokenizer(), ENDS, rows=301)
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens(["[PAD304]"])
    with pytest.raises(InputError, match=r"two of its tokens are '\[PAD304\]'"):
        gguf_tokenizer.read(tokenizer, ENDS, rows=ROWS)
    with pytest.raises(InputError, match="4 tokens that end an answer, and # is one too many"):
        gguf_tokenizer.read(bpe_tokenizer(), SimpleNamespace(eos_token_id=[2, 3, 4, 5]), rows=ROWS)


# The weights.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_reads_back_as_the_model(tmp_path, family):
    model, tokenizer = model_of(family) if family != "mistral" else mistral(), bpe_tokenizer()
    vocabulary = gguf_tokenizer.read(tokenizer, ENDS, rows=ROWS)
    gguf_writer.check(model.config, "it")
    gguf_writer.write(model, vocabulary, tmp_path / "a.gguf", kind="F32", name="a")
    again, read = loading.load_base(str(tmp_path / "a.gguf"), device="cpu")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    question = "What is 12 + 345?"
    assert make_prompt(question, read, "think") == make_prompt(question, tokenizer, "think")
    assert read.chat_template == TEMPLATE and read.eos_token_id == 2


def mistral():
    from transformers import MistralConfig, MistralForCausalLM

    config = model_of("qwen2").config.to_dict()
    sizes = {
        k: v for k, v in config.items() if k.endswith(("size", "layers", "heads", "embeddings"))
    }
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**sizes, head_dim=8, sliding_window=None)).eval()


def test_rows_of_a_llama_change_places_pair_by_pair():
    config = SimpleNamespace(model_type="llama", num_attention_heads=2, num_key_value_heads=1)
    rows = torch.arange(8.0)
    # Two heads of four: the first half of each beside the second.
    moved = gguf_writer.ordered("model.layers.0.self_attn.q_proj.bias", rows, config)
    assert moved.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    moved = gguf_writer.ordered("model.layers.0.self_attn.k_proj.weight", rows[:, None], config)
    assert moved[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    for name, kind in (("self_attn.v_proj", "llama"), ("self_attn.q_proj", "qwen2")):
        config.model_type = kind
        assert gguf_writer.ordered(f"{name}.weight", rows, config) is rows


def test_positions_of_kind_llama3_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=LLAMA3)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    factors = gguf_rope.llama3_factors(LLAMA3, 64)
    assert factors[0] == 1.0 and factors[-1] == 32.0 and len(set(factors)) > 4
    assert torch.allclose(plain / torch.tensor(factors), frequencies, rtol=1e-5)
    assert gguf_rope.llama3_settings(factors, 500000.0) == LLAMA3
    assert gguf_rope.llama3_settings([*factors[:-2], 20.0, 32.0], 500000.0) is None


def test_a_llama3_reads_back_with_its_positions(tmp_path):
    model = tiny_model(
        "llama", vocabulary=ROWS, eos_token_id=2, head_dim=16, rope_parameters=LLAMA3
    )
    file = tmp_path / "a.gguf"
    vocabulary = gguf_tokenizer.read(bpe_tokenizer("llama-bpe"), ENDS, rows=ROWS)
    gguf_writer.write(model, vocabulary, file, kind="F32", name="a")
    again, _ = loading.load_base(str(file), device="cpu")
    places = IDS.repeat(1, 12)  # far enough for the long waves to show
    assert torch.allclose(again(places).logits, model(places).logits, atol=1e-4)
    again.config.rope_parameters["rope_type"] = "default"
    plain = type(again)(again.config).eval()
    plain.load_state_dict(again.state_dict())
    assert not torch.allclose(plain(places).logits, model(places).logits, atol=1e-3)


def test_each_weight_has_its_kind():
    kind_of = gguf_writer.kind_of
    assert kind_of("blk.0.attn_norm.weight", (64,), "Q8_0") == "F32"
    assert kind_of("blk.0.ffn_up.weight", (8, 64), "Q4_0") == "Q4_0"
    assert kind_of("token_embd.weight", (8, 64), "Q4_0") == "Q8_0"
    assert kind_of("blk.0.ffn_up.weight", (8, 40), "Q8_0") == "F16", "no whole blocks of 32"
    values = torch.tensor([[1.0, -(2.0**-30)]])
    assert gguf_writer.rounded(values, "F16", "x").tolist() == [[1.0, 0.0]]
    assert gguf_writer.rounded(values, "F32", "x").tolist() == values.tolist()
    for bad in (65520.0, float("nan")):
        with pytest.raises(InputError, match=r"ffn_up has values beyond 65504.*--dtype BF16"):
            gguf_writer.encoded(torch.tensor([[bad]]), "F16", "ffn_up")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model_type": "gemma3_text"},
            "of the family gemma3_text; written as GGUF are llama, mis",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "positions of the kind yarn"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "turned in part"),
        ({"sliding_window": 100, "layer_types": ["sliding_attention"]}, "a window of 100 tokens"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"model_type": "qwen3", "attention_bias": True}, "biases in its attention"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_told(change, told):
    config = {"model_type": "qwen2", "max_position_embeddings": 512, "hidden_act": "silu"}
    gguf_writer.check(SimpleNamespace(**config), "--model x")
    gguf_writer.check(SimpleNamespace(**config, sliding_window=512), "--model x")
    with pytest.raises(InputError, match=f"--model x: .*{told}"):
        gguf_writer.check(SimpleNamespace(**config | change), "--model x")


# The Modelfile.

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [SYSTEM, {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"}]  # fmt: skip


def rendered_in_go(text: str, messages: list[dict]) -> str:
    """Return what Go's text/template makes of the few actions that a Modelfile of ours has."""
    text = text.replace('{{ "{{" }}', "\0")
    before, _, rest = text.partition("{{ range .Messages }}")
    loop, _, after = rest.partition("{{ end }}{{ end }}")
    cases = re.findall(
        r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop, re.S
    )
    frame = dict(cases)
    turns = [frame[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages
             if m["role"] in frame]  # fmt: skip
    return (before + "".join(turns) + after).replace("\0", "{{")


def template_of(text: str) -> str:
    return re.search(r'^TEMPLATE """(.*?)"""$', text, re.S | re.M)[1]


def written(tokenizer, manifest: dict, **more) -> str:
    options = dict(ends=["<|im_end|>"], add_bos=False, context_tokens=512) | more
    return modelfile.write("a.gguf", tokenizer, manifest, **options)


@pytest.mark.parametrize("template", [TEMPLATE, BOS_TEMPLATE, FORGETFUL])
def test_the_template_in_go_is_the_chat_template(template):
    bos = SPECIAL[0] if template == BOS_TEMPLATE else None
    tokenizer = bpe_tokenizer(template=template, bos=bos)
    text = template_of(written(tokenizer, {}, add_bos=bool(bos)))
    for chat in (CHAT, CHAT[:2]):
        shown = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert rendered_in_go(text, chat) == shown.removeprefix(bos or "")


def test_a_template_without_a_system_turn_and_none_at_all():
    tiny, _ = loading.load_tokenizer("weights/tiny_base")
    text = template_of(written(tiny, {}))
    assert "system" not in text
    assert rendered_in_go(text, CHAT) == chat_text(tiny, "Be brief.", CHAT[1:])
    plain = bpe_tokenizer(template=None)
    fmt = get_format("think")
    asked = [SYSTEM | {"content": fmt.instruction}, CHAT[1]]
    prompt = make_prompt("1 + 1?", plain, "think")
    assert rendered_in_go(template_of(written(plain, {})), asked) == plain.decode(prompt.ids)


def test_a_template_that_is_no_frame_is_left_out():
    numbered = TEMPLATE.replace("message['role']", "(loop.index | string) + message['role']")
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}x"
    for template in (numbered, strict, TEMPLATE.replace("'\n'", '\'\n"""\'', 1)):
        text = written(bpe_tokenizer(template=template), {})
        assert "TEMPLATE" not in text and "Ollama takes its own" in text and "SYSTEM" in text


def test_a_modelfile_has_instruction_examples_stops_and_adapter():
    shots = [{"question": "1 + 2?", "answer": "3", "solution": "1 + 2 = 3"}]
    text = written(bpe_tokenizer(), {"format": "think", "shots": shots}, lora="l.gguf")
    fmt = get_format("think")
    assert text.startswith("FROM ./a.gguf\nADAPTER ./l.gguf\nTEMPLATE ")
    assert f'SYSTEM """{fmt.instruction}"""\nMESSAGE user """1 + 2?"""\nMESSAGE assistant ' in text
    assert text.endswith(
        'PARAMETER stop """<|im_end|>"""\nPARAMETER temperature 0\nPARAMETER num_ctx 512\n'
    )
    user = written(bpe_tokenizer(), {"format": "think", "instruction_role": "user"})
    asked = [{"role": "user", "content": "1 + 1?"}]
    tokenizer = bpe_tokenizer()
    assert "SYSTEM" not in user
    assert rendered_in_go(template_of(user), asked) == tokenizer.decode(
        make_prompt("1 + 1?", tokenizer, "think", role="user").ids
    )


def test_braces_of_a_chat_template_are_none_of_gos():
    template = TEMPLATE.replace("<|im_start|>'", "<|im_start|>{' + '{'")
    tokenizer = bpe_tokenizer(template=template)
    text = template_of(written(tokenizer, {}))
    shown = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert '{{ "{{" }}' in text and rendered_in_go(text, CHAT) == shown


# The command.


def run(*arguments) -> int:
    return export.main([*map(str, arguments)])


def test_without_llama_cpp_the_rest_is_proved(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(llama_cpp, "installed", lambda: None)
    out = tmp_path / "out"
    asked = ["gguf", "--adapter", folder / "llama-lora", "--output", out, "--dtype", "Q8_0"]
    assert run(*asked) == 0
    assert {p.name for p in out.iterdir()} == {
        "out-Q8_0.gguf", "Modelfile", "README.md", "manifest.json"}  # fmt: skip
    found = json.loads((out / "manifest.json").read_text())
    assert found["base"] == "llama" and found["export"]["dtype"] == "Q8_0"
    metrics = found["export"]["proof"]
    assert metrics["logit_difference"] <= metrics["logit_tolerance"]
    assert "llama_cpp" not in metrics and "llama.cpp itself was not asked" in caplog.text
    card = (out / "README.md").read_text()
    assert "ollama create out -f Modelfile" in card and "library_name: gguf" in card


def test_a_file_of_other_weights_is_caught_and_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "installed", lambda: None)
    monkeypatch.setattr(gguf_writer, "ordered", lambda name, values, config: values)
    with pytest.raises(proof.ProofError, match="read by transformers it is another one"):
        run("gguf", "--adapter", folder / "llama-lora", "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gguf"], "changes the text before it cuts it up .Replace.*--token-ids"),
        (["gguf", "--adapter", "none"], "nothing to write; use --model BASE"),
        (["gguf", "--dtype", "Q4_K"], "invalid choice: 'Q4_K'"),
        (["lora-gguf", "--adapter", "none"], "no folder none"),
        (["merged", "--token-ids"], "unrecognized arguments"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(tmp_path, arguments, told):
    with pytest.raises(InputError, match=told):
        run(*arguments, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_byte_tokenizers_have_no_file_of_token_ids():
    with pytest.raises(InputError, match=r"--token-ids: .*not a BPE with merges"):
        gguf_tokenizer.pieces(byte_tokenizer(), ENDS, rows=258)
    tiny, generation = loading.load_tokenizer("weights/tiny_base")
    found = gguf_tokenizer.pieces(tiny, generation, rows=768)
    assert found.template is None and found.ends == [2] and len(found.merges) == 509


def test_the_size_of_heads_is_the_files_where_transformers_leaves_it_out():
    header = SimpleNamespace(
        metadata={"general.architecture": "qwen3", "qwen3.attention.key_length": 8},
        tensors=("blk.0.attn_q.bias",),
    )
    assert gguf_file.completed({"hidden_size": 4}, header) == {
        "head_dim": 8, "attention_bias": True, "hidden_size": 4}  # fmt: skip
    assert gguf_file.completed({"head_dim": 16}, header)["head_dim"] == 16
