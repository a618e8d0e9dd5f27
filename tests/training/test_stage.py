"""The end of a stage: before the adapter is proved, what the engines held is given back."""

import gc
from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch.multiprocessing.reductions import StorageWeakRef

import config
from rlm.agents.runner import Runner
from rlm.engine.engine import Engine, Sampling
from rlm.export import save
from rlm.models.policy import Policy
from rlm.records import Prompt
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model
from training.stage import Stage


def tensors(value) -> list[torch.Tensor]:
    """Return the tensors in a dictionary or a list, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    inner = inner if isinstance(inner, Iterable) and not isinstance(inner, str) else ()
    return [x for each in inner for x in tensors(each)]


def storages(tensors) -> list[StorageWeakRef]:
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


def left(found: list[StorageWeakRef]) -> int:
    return sum(not each.expired() for each in found)


def test_a_base_that_is_moved_away_leaves_nothing_behind(tmp_path, monkeypatch):
    model = tiny_lora(tiny_model()).to(torch.bfloat16)
    tokenizer = byte_tokenizer()
    engine, agents = (Engine(model, tokenizer) for _ in range(2))
    for each in (engine, agents):
        each.sync()
        each.submit(Prompt([5, 6, 7]), Sampling(8), [0, 1])
        each.step()  # its cache is there, and a prompt's keys and values
    network = model.get_base_model()
    base = [p for n, p in network.named_parameters() if "lora_" not in n]
    cached = [x for each in (engine, agents) for x in tensors(vars(each._runner.cache))]
    low = [x for m in engine._runner.model.network.modules() if hasattr(m, "down")
           for x in (m.down, m.up)]  # fmt: skip
    assert base and low and sum(x.nbytes for x in cached) > 1000
    weights, held = storages(base), storages(cached + low)
    del cached, low
    settings = config.load(config.GRPOSettings, ["--output", str(tmp_path / "out")])
    run = SimpleNamespace(finish=lambda: None, rows=[], path=tmp_path)
    task = SimpleNamespace(engines=(Runner(agents, max_tokens=4).engine,), shots=())
    stage = Stage(settings, Policy(model, tokenizer, "", {}), engine, run, task)
    seen = []

    def moved(*given, **options):
        for parameter in base:  # as `to` does it
            parameter.data = parameter.data.clone()
        seen.append((left(weights), left(held)))

    monkeypatch.setattr(save, "save_policy", moved)
    gc.disable()
    try:
        stage.finish(None, [])
    finally:
        gc.enable()
    assert seen == [(0, 0)]
    for each in (engine, agents):
        each.close()  # a second time nothing is left to do
        assert each.idle
