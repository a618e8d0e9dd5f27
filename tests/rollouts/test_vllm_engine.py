"""The vLLM engine's own part, with a backend in its place that is a copy of the model."""

import copy
import importlib
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rlm.engine.engine import Engine, Sampling
from rlm.engine.sampling import Closing
from rlm.errors import InputError, RunError
from rlm.models.adapters import load_adapter
from rlm.models.policy import Policy
from rlm.records import Prompt
from rlm.rollouts import choice
from rlm.rollouts.vllm_engine import Completion, Request, VllmEngine
from rlm.seeds import derive
from tests.support.running import ROOT
from tests.support.tiny_models import EOS, SIZE, byte_tokenizer, tiny_lora, tiny_model

PROMPTS = [Prompt(list(b"1 + 1 =")), Prompt(list(b"Count: "), prefill="x")]
SAMPLING = Sampling(12, temperature=0.8)


class Copy:
    """Another process, as it were: it knows the base and what lies in the folders."""

    name, context_tokens = "copy", None

    def __init__(self, base, tokenizer=None):
        self.base, self.adapters, self.closed, self.seen = copy.deepcopy(base), {}, False, []
        self.tokenizer = tokenizer or byte_tokenizer()

    def load(self, version, folder):
        self.adapters[version] = load_adapter(copy.deepcopy(self.base), folder, trainable=False)
        self.seen.append((version, sorted(path.name for path in folder.iterdir())))

    def unload(self, version):
        del self.adapters[version]

    def close(self):
        self.closed = True

    @torch.no_grad()
    def complete(self, requests, version):
        model = self.base if version is None else self.adapters[version]
        engine = Engine(model, self.tokenizer)
        for request in requests:
            sampling = Sampling(request.max_tokens, temperature=request.temperature)
            engine.submit(Prompt(request.ids), sampling, [request.seed])
        done = {}
        while not engine.idle:
            done |= {event.id: event.rollout for event in engine.step() if event.rollout}
        rollouts = [done[id] for id in sorted(done)]
        found = []
        for request, rollout in zip(requests, rollouts, strict=True):
            prompt = []
            if request.scored:
                logits = model(input_ids=torch.tensor([request.ids])).logits[0].log_softmax(1)
                prompt = [float(logits[i, id]) for i, id in enumerate(request.ids[1:])]
            found.append(Completion(rollout.ids, rollout.logprobs, prompt))
        return found


def opened(folder, *, vocabulary=SIZE, other=None, kind=VllmEngine, **options):
    """Return (model, backend, engine)."""
    settings = {"vocabulary": vocabulary, "max_position_embeddings": 512}
    model = tiny_lora(tiny_model(**settings))
    backend = Copy(tiny_model(**settings) if other is None else other)
    told = {"format_name": "think", "temperature": 1.0, "folder": folder} | options
    return model, backend, kind(model, byte_tokenizer(), backend, **told)


def learn(model, size=0.05):
    """Change the adapter as a step would."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += size * torch.randn(weight.shape, generator=torch.manual_seed(1))


def test_rollouts_are_those_of_our_own_engine(tmp_path):
    model, _, engine = opened(tmp_path, vocabulary=SIZE + 9)
    own = Engine(model, byte_tokenizer())
    ours = own.generate(PROMPTS, 3, SAMPLING, seed=5)
    found = engine.generate(PROMPTS, 3, SAMPLING, seed=5)
    for group, other in zip(ours, found, strict=True):
        for one, two in zip(group, other, strict=True):
            assert (one.ids, one.text, one.finish) == (two.ids, two.text, two.finish)
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
    assert {r.finish for group in found for r in group} <= {"stop", "length"}
    assert all(r.text.startswith("x") for r in found[1])
    assert any(r.ids[-1] == EOS and "eos" not in r.text for g in found for r in g) or all(
        r.finish == "length" for g in found for r in g
    )


def test_numbers_are_those_of_a_longer_list(tmp_path):
    engine = opened(tmp_path)[2]
    both = engine.generate(PROMPTS, 2, SAMPLING, seed=5)
    second = engine.generate(PROMPTS[1:], 2, SAMPLING, seed=5, numbers=[1])
    assert [r.ids for r in second[0]] == [r.ids for r in both[1]]
    heard = []
    engine.generate(PROMPTS[:1], 1, SAMPLING, seed=5, on_token=lambda *each: heard.append(each))
    assert heard == [(0, 0, token) for token in both[0][0].ids]


def test_only_the_adapter_travels_and_only_when_it_changed(tmp_path):
    model, backend, engine = opened(tmp_path)
    files = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert backend.seen == [(1, files)] and list(backend.adapters) == [1]
    engine.sync(4)
    assert engine.version == 4 and len(backend.seen) == 1, "the same weights"
    learn(model)
    engine.sync(5)
    assert backend.seen[1:] == [(2, files)], "a number of its own for each version"
    assert list(backend.adapters) == [2], "the last one is taken out"
    assert list(tmp_path.iterdir()) == [], "nothing is left on the disk"
    ((rollout,),) = engine.generate(PROMPTS[:1], 1, SAMPLING, seed=0)
    assert rollout.version == 5
    own = Engine(model, byte_tokenizer())
    assert rollout.ids == own.generate(PROMPTS[:1], 1, SAMPLING, seed=0)[0][0].ids


@pytest.mark.parametrize("size", [0.05, 1e-4], ids=["large", "within the tolerance"])
def test_the_canary_stops_a_run_whose_sync_was_withheld(tmp_path, size):
    model, backend, engine = opened(tmp_path, tolerance=0.01)
    learn(model, size)
    kept = backend.adapters[1]
    backend.load = lambda version, folder: backend.adapters.update({version: kept})
    with pytest.raises(RunError, match=r"adapter version 3 has not arrived: copy .* nats"):
        engine.sync(3)


def test_an_adapter_that_stays_outside_is_found_at_the_start(tmp_path):
    model = tiny_lora(tiny_model(max_position_embeddings=512))
    backend = Copy(tiny_model(max_position_embeddings=512))
    backend.load = lambda version, folder: backend.adapters.update({version: backend.base})
    options = {"format_name": "think", "temperature": 1.0, "folder": tmp_path}
    with pytest.raises(RunError, match="adapter version 0 has not arrived"):
        VllmEngine(model, byte_tokenizer(), backend, **options)


def test_another_base_is_refused(tmp_path):
    with pytest.raises(InputError, match="copy: another base model than the learner's"):
        opened(tmp_path, other=tiny_model(seed=1, max_position_embeddings=512))


def test_a_base_of_more_tokens_is_refused(tmp_path):
    class Larger(Copy):
        def complete(self, requests, version):
            return [Completion([SIZE + 1], [0.0], [0.0] * (len(requests[0].ids) - 1))]

    model, backend = tiny_lora(tiny_model(max_position_embeddings=512)), Larger(tiny_model())
    options = {"format_name": "think", "temperature": 1.0, "folder": tmp_path}
    with pytest.raises(InputError, match=f"knows {SIZE} tokens: another base model"):
        VllmEngine(model, byte_tokenizer(), backend, **options)


def test_padded_rows_are_banned_and_refused(tmp_path):
    _, backend, engine = opened(tmp_path, vocabulary=SIZE + 9)
    asked = []
    complete = backend.complete
    backend.complete = lambda requests, version: (
        asked.extend(requests) or complete(requests, version)
    )
    engine.generate(PROMPTS[:1], 1, SAMPLING, seed=0)
    assert asked[0].banned == range(SIZE, SIZE + 9) and asked[0].stops == (EOS,)
    assert isinstance(asked[0], Request) and not asked[0].scored
    backend.complete = lambda requests, version: [Completion([5, SIZE], [0.0, 0.0], [])]
    with pytest.raises(RunError, match=f"up to id {SIZE} with 2 .* knows {SIZE} tokens"):
        engine.generate(PROMPTS[:1], 1, SAMPLING, seed=0)


@pytest.mark.parametrize(
    "more",
    [{"top_k": 3}, {"top_p": 0.5}, {"stop": ("x",)}, {"closing": Closing(1, (1,), "a", "b")}],
)
def test_what_vllm_would_do_otherwise_is_refused(tmp_path, more):
    engine = opened(tmp_path)[2]
    with pytest.raises(InputError, match="use --engine own"):
        engine.generate(PROMPTS, 1, Sampling(4, **more), seed=0)


@pytest.mark.parametrize("seeded", [True, False])
def test_samples_have_seeds_where_they_are_asked_for(tmp_path, seeded):
    _, backend, engine = opened(tmp_path, seeded=seeded)
    asked = []
    complete = backend.complete

    def own_draws(requests, version):
        asked.extend(requests)
        given = [replace(request, seed=request.seed or 7) for request in requests]
        return complete(given, version)

    backend.complete = own_draws
    engine.generate(PROMPTS, 2, SAMPLING, seed=5)
    expected = {derive(5, b, g) for b in range(2) for g in range(2)} if seeded else {None}
    assert {request.seed for request in asked} == expected and len(asked) == 4


@pytest.mark.parametrize(("seeds", "seeded"), [("auto", True), ("on", True), ("off", False)])
def test_on_a_cpu_samples_have_seeds_unless_switched_off(tmp_path, monkeypatch, seeds, seeded):
    settings = {"max_position_embeddings": 512}
    model, backend = tiny_lora(tiny_model(**settings)), Copy(tiny_model(**settings))
    monkeypatch.setattr(choice, "_local", lambda policy, plan, sizes: (backend, 0))
    plan = choice.VllmPlan(PROMPTS, 12, 1.0, 8, 2, 0, "think", 0.0, tmp_path, seeds=seeds)
    policy = Policy(model, byte_tokenizer(), "tiny", {})
    assert choice.open_engine(policy, "vllm", own={}, vllm=lambda: plan).seeded == seeded
    monkeypatch.setattr(type(model.get_base_model()), "device", torch.device("cuda"))
    seen = []
    monkeypatch.setattr("rlm.rollouts.vllm_engine.VllmEngine.__init__",
                        lambda self, *given, **options: seen.append(options["seeded"]))  # fmt: skip
    choice.open_engine(policy, "vllm", own={}, vllm=lambda: plan)
    assert seen == [seeds == "on"], "a GPU would draw row by row"


class FakeVllm:
    """Stands for the parts of vllm that rlm/rollouts/vllm_local.py asks."""

    def __init__(self, monkeypatch):
        self.opened, self.asked = {}, []
        parts = {
            "vllm": {"LLM": self._open, "SamplingParams": lambda **options: options},
            "vllm.lora.request": {"LoRARequest": None},
            "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cpu")},
            "vllm.v1.sample.logits_processor": {"LogitsProcessor": object},
        }
        for name in ("vllm.lora", "vllm.v1", "vllm.v1.sample"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for name, found in parts.items():
            module = ModuleType(name)
            vars(module).update(found)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "rlm.rollouts.vllm_mask", raising=False)

    def _open(self, model, **options):
        self.opened = options
        return self

    def generate(self, prompts, parameters, **options):
        self.asked += parameters
        token = {3: SimpleNamespace(logprob=-0.5)}
        output = SimpleNamespace(token_ids=[3], logprobs=[token])
        return [SimpleNamespace(outputs=[output], prompt_logprobs=None, prompt_token_ids=[1])
                for _ in prompts]  # fmt: skip


def test_here_vllm_masks_what_is_no_token_at_once_and_not_by_request(monkeypatch):
    fake = FakeVllm(monkeypatch)
    from rlm.rollouts.vllm_local import LocalVllm

    local = LocalVllm(
        str(ROOT / "weights/tiny_base"), dtype="float32", device="cpu", rank=8, rows=16,
        context=64, memory={}, known=5, seed=2**40 + 3,
    )  # fmt: skip
    request = Request([1, 2], 4, 1.0, None, (EOS,), range(5, 8))
    assert local.complete([request], None) == [Completion([3], [-0.5], [])]
    (asked,) = fake.asked
    assert asked["seed"] is None and "logit_bias" not in asked
    assert fake.opened["seed"] == 3
    (name,) = fake.opened["logits_processors"]
    module, _, kind = name.partition(":")
    options = SimpleNamespace(additional_config=fake.opened["additional_config"])
    processor = getattr(importlib.import_module(module), kind)(options, "cpu", False)
    processor.update_state(None)
    logits = processor.apply(torch.zeros(2, 8))
    assert logits.softmax(1).tolist() == [[pytest.approx(0.2)] * 5 + [0.0] * 3] * 2
    assert not processor.is_argmax_invariant()


def test_too_long_a_prompt_is_refused_with_the_numbers(tmp_path):
    _, backend, engine = opened(tmp_path)
    backend.context_tokens = 16
    with pytest.raises(InputError, match=r"7 tokens and max_tokens 12 .* the 16 tokens that copy"):
        engine.generate(PROMPTS, 1, SAMPLING, seed=0)


def test_close_frees_the_backend_and_its_folder(tmp_path):
    folder = tmp_path / "adapters"
    folder.mkdir()
    _, backend, engine = opened(folder)
    engine.close()
    assert backend.closed and not folder.exists()


def test_a_failed_start_closes_the_backend(tmp_path, monkeypatch):
    model = tiny_lora(tiny_model(max_position_embeddings=512))
    backend = Copy(tiny_model(seed=1, max_position_embeddings=512))
    monkeypatch.setattr(choice, "_local", lambda policy, plan, sizes: (backend, 0))
    plan = choice.VllmPlan(PROMPTS, 12, 1.0, 8, 2, 0, "think", 0.0, tmp_path)
    policy = Policy(model, byte_tokenizer(), "tiny", {})
    with pytest.raises(InputError, match="another base model"):
        choice.open_engine(policy, "vllm", own={}, vllm=lambda: plan)
    assert backend.closed
    backend.base = tiny_model(max_position_embeddings=512)
    monkeypatch.setattr(choice, "_local", lambda policy, plan, sizes: (backend, 777))
    engine = choice.open_engine(policy, "vllm", own={}, vllm=lambda: plan)
    assert isinstance(engine, VllmEngine) and engine.learner_tokens == 777


def test_our_own_engine_counts_versions_too():
    model = tiny_lora(tiny_model())
    engine = choice.open_engine(Policy(model, byte_tokenizer(), "", {}), "own", own={})
    assert engine.generate(PROMPTS[:1], 1, SAMPLING, seed=0)[0][0].version == 0
    engine.sync(3)
    engine.sync()
    assert engine.generate(PROMPTS[:1], 1, SAMPLING, seed=0)[0][0].version == 3
