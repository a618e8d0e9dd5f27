"""The probe of what SFT leaves of a question: its places, its sums, its table."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from rlm.agents.graph import Agent, Graph
from tests.support.running import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import orchestrator_starts as starts


def graph(one: str, two: str) -> Graph:
    last = Agent(id="b", prompt=two, reads=["a"])
    return Graph(agents=[Agent(id="a", prompt=one, reads=[]), last])


@pytest.mark.parametrize("roles", [("Multiply.", "Add."), ("Divide.", "Divide.")])
def test_the_places_are_those_of_the_roles_first_tokens(roles):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "weights/tiny_json_base")
    ids, found = starts.places(SimpleNamespace(tokenizer=tokenizer), graph(*roles))
    assert tokenizer.decode(ids) == graph(*roles).text()
    assert len(found) == 2
    for place, role in zip(found, roles, strict=True):
        assert tokenizer.decode(ids[:place]).endswith('"prompt":"')
        assert tokenizer.decode(ids[place:]).startswith(role)


def test_a_token_over_the_beginning_of_a_role_is_no_place():
    task = SimpleNamespace(tokenizer=Whole())
    with pytest.raises(ValueError, match="a token holds the beginning of a role"):
        starts.places(task, graph("A", "B"))


class Whole:
    """A tokenizer that makes one token of everything."""

    def __call__(self, text, **_):
        self.text = text
        return {"input_ids": [0]}

    def decode(self, ids):
        return self.text


def test_a_probe_reads_what_is_there_and_guesses_what_is_not():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw)
    assert starts.probe(x, x[:, :4].argmax(1), 400) > 0.9
    chance = torch.randint(4, (600,), generator=draw)
    assert starts.probe(x, chance, 400) < 0.4
    # Scored on what it was not fitted on: the other labels are all wrong.
    other = torch.cat([x[:400, :4].argmax(1), (x[400:, :4].argmax(1) + 1) % 4])
    assert starts.probe(x, other, 400) < 0.1


def test_the_table_has_a_row_for_each_start_and_leaves_out_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "PATH", tmp_path / "starts.json")
    assert "Not measured yet" in starts.table()
    found = {"15": {starts.BASE: {"first": 1.0, "second": 0.9925},
                    "MLPs alone": {"first": 0.97, "second": 0.9}}}  # fmt: skip
    starts.PATH.write_text(json.dumps({"starts": found}), encoding="utf-8")
    lines = starts.table().splitlines()
    assert lines[0] == "|  | seed 15: first, second |"
    assert lines[2] == "| the base, before SFT | 100.0, 99.2 |"
    assert lines[3] == "| all layers |  |" and lines[-1] == "| MLPs alone | 97.0, 90.0 |"


def test_the_command_is_the_recipe_with_the_lora_elsewhere():
    words = starts.command("all layers, rank 4", 3).split()
    assert words[:4] == ["python", "train_sft.py", "--config", "configs/orchestrator.yaml"]
    assert words[words.index("--lora-r") + 1] == "4" and words[words.index("--seed") + 1] == "3"
    assert words[words.index("--output") + 1].endswith("/all-layers-rank-4-3")
