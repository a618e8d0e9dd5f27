"""The base of the tiny orchestrator: a few embeddings drawn anew, everything else as it was."""

import json

import torch
from running import ROOT
from safetensors.torch import load_file
from tiny_models import byte_tokenizer, tiny_model

from rlm.adapters import read_manifest
from rlm.tiny_json import ALIKE, CHARACTERS, main, revive, unlearned

BASE, SHIPPED = ROOT / "weights/tiny_base", ROOT / "weights/tiny_json_base"


def test_rows_that_are_alike_never_learned():
    weight = torch.eye(4)[[0, 1, 2, 2, 3]]  # [5, 4]; rows 2 and 3 are the same
    weight[4, 3] = 1.0
    assert unlearned(weight, [0, 2, 3, 4]) == [2, 3]
    weight[3, 0] = 1.1 * ALIKE
    assert unlearned(weight, [0, 2, 3, 4]) == []


def test_only_what_never_learned_is_drawn_anew():
    model, tokenizer = tiny_model(), byte_tokenizer()
    brace, quote, letter = (tokenizer(c).input_ids[0] for c in '{"a')
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[brace] = weight[quote] + 0.001
    before = weight.detach().clone()
    assert revive(model, tokenizer) == sorted([brace, quote])
    assert torch.dist(weight[brace], weight[quote]) > 1 and not torch.equal(weight, before)
    assert torch.equal(weight[letter], before[letter])


def test_the_shipped_base_is_the_tiny_one_but_for_those_rows(tmp_path):
    old, new = (load_file(path / "model.safetensors") for path in (BASE, SHIPPED))
    assert old.keys() == new.keys()
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == ["model.embed_tokens.weight"]
    rows = (old[changed[0]] != new[changed[0]]).any(1).sum()
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert rows == len(manifest["drawn_anew"]) == 8
    main(["--base", str(BASE), "--output", str(tmp_path / "again")])
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(new[name], again[name]) for name in new), "the recipe makes it anew"


def test_both_bases_read_text_alike():
    from transformers import AutoTokenizer

    texts = [CHARACTERS, "Calculate 417 + 85 + 9"]
    one, two = (AutoTokenizer.from_pretrained(path) for path in (BASE, SHIPPED))
    assert [one(t).input_ids for t in texts] == [two(t).input_ids for t in texts]
    assert one.chat_template == two.chat_template


def test_the_workers_stand_on_the_tiny_base():
    assert read_manifest(ROOT / "weights/tiny_agents_lora")["base"] == "weights/tiny_base"
