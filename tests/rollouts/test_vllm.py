"""vLLM itself as the engine, in this process and as a server, beside the learner: all real.

The base is the tiny one with rows of the head that have no token, and so made that these would be
the likeliest of all: what is not masked shows at once.
"""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
import torch
from safetensors.torch import load_file

from rlm.data import problems
from rlm.engine.engine import Engine, Sampling
from rlm.errors import InputError, RunError
from rlm.learner.logprobs import pack, token_logprobs
from rlm.models.loading import add_lora, load_base
from rlm.models.policy import Policy
from rlm.models.prompts import make_prompt
from rlm.rollouts import choice
from tests.rollouts.test_vllm_training import SHIPPED, SMALL, TINY, TOLERANCE, check_run
from tests.support.real_vllm import needs_vllm, serving
from tests.support.running import ROOT, succeed

pytestmark = needs_vllm
MORE = 32  # rows without a token
LORA = ["--enable-lora", "--max-lora-rank", 16, "--logprobs-mode", "processed_logprobs",
        "--no-enable-chunked-prefill"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `base`, the padded tiny base."""
    path = tmp_path_factory.mktemp("vllm")
    model, tokenizer = load_base(str(TINY), device="cpu", dtype="float32")
    known = len(tokenizer)
    hidden = []
    model.model.norm.register_forward_hook(lambda *parts: hidden.append(parts[2][0]))
    with torch.no_grad():
        for prompt in prompts(tokenizer):
            model(input_ids=torch.tensor([prompt.ids]))
        mean = torch.cat(hidden).mean(0)
        model.resize_token_embeddings(known + MORE, mean_resizing=False)
        # So that the logit is about 25 wherever the hidden state is like its mean.
        model.get_input_embeddings().weight[known:] = 25 * mean / mean.square().sum()
    model.save_pretrained(path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, path / "base" / name)
    return path


def prompts(tokenizer):
    return [make_prompt(e.question, tokenizer, "think") for e in problems.additions(3, 8)]


def policy(base) -> Policy:
    """Return the policy of the shipped adapter on a base of its shape."""
    from peft import set_peft_model_state_dict

    model, tokenizer = load_base(str(base), device="cpu", dtype="float32")
    model = add_lora(model, r=16, alpha=32, seed=0)
    set_peft_model_state_dict(model, load_file(SHIPPED / "adapter_model.safetensors"))
    return Policy(model.eval(), tokenizer, str(base), {})


@pytest.fixture(scope="module")
def url(place):
    with serving(place / "base", place, *LORA) as address:
        yield address


@pytest.fixture(scope="module", params=["here", "server"])
def both(request, place):
    """The engine, its learner and our own engine of the same policy, with the prompts."""
    opened = policy(place / "base")
    asked = prompts(opened.tokenizer)
    plan = choice.VllmPlan(asked, 160, 1.0, 256, 8, 0, "think", TOLERANCE, place)
    address = request.getfixturevalue("url") if request.param == "server" else None
    engine = choice.open_engine(opened, "vllm", own={}, url=address, vllm=lambda: plan)
    own = Engine(opened.model, opened.tokenizer)
    yield SimpleNamespace(engine=engine, own=own, policy=opened, prompts=asked, url=address)
    engine.close()


def answers(engine, asked) -> list[tuple[list[int], str, str]]:
    """Return the greedy answers: ids, text and how they ended."""
    groups = engine.generate(asked, 1, Sampling(160, temperature=0.0), seed=0)
    return [(r.ids, r.text, r.finish) for (r,) in groups]


def test_without_a_mask_the_rows_without_a_token_are_the_likeliest(both):
    ids = torch.tensor([both.prompts[0].ids])
    with torch.no_grad():
        last = both.policy.model(input_ids=ids).logits[0].softmax(1)
    assert last[:, len(both.policy.tokenizer) :].sum(1).mean() > 0.5


@pytest.mark.ci
def test_greedy_tokens_are_those_of_our_own_engine(both):
    found = answers(both.engine, both.prompts)
    assert found == answers(both.own, both.prompts)
    assert all(finish == "stop" for _, _, finish in found)


@pytest.mark.ci
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_logprobs_are_the_learners_at_the_temperature(both, temperature):
    known = len(both.policy.tokenizer)
    sampling = Sampling(40, temperature=temperature)
    groups = both.engine.generate(both.prompts, 4, sampling, seed=1)
    assert max(id for group in groups for r in group for id in r.ids) < known
    assert len({tuple(r.ids) for group in groups for r in group}) > 8
    assert {len(r.ids) for g in groups for r in g if r.finish == "length"} == {40}
    packed = pack([(p.ids, [r.ids for r in g]) for p, g in zip(both.prompts, groups, strict=True)])
    with torch.no_grad():
        options = {"temperature": temperature, "vocab_size": known}
        learner, _ = token_logprobs(both.policy.model, packed, **options)
    engine = torch.tensor([x for group in groups for r in group for x in r.logprobs])
    assert float((learner - engine).abs().max()) < TOLERANCE
    again = both.engine.generate(both.prompts[2:], 4, sampling, seed=1, numbers=range(2, 8))
    assert [r.ids for g in again for r in g] == [r.ids for g in groups[2:] for r in g]


def test_without_seeds_samples_are_new_ones_under_the_same_mask(both, monkeypatch):
    """Hot ones: at 1 the shipped adapter is so sure that 24 tokens are always the same."""
    monkeypatch.setattr(both.engine, "seeded", False)
    sampling = Sampling(40, temperature=1.7)
    found = [both.engine.generate(both.prompts, 4, sampling, seed=1) for _ in range(2)]
    ids = [[tuple(r.ids) for group in groups for r in group] for groups in found]
    assert ids[0] != ids[1] and len(set(ids[0])) > 24, "a group's samples differ, too"
    known = len(both.policy.tokenizer)
    assert max(id for each in ids for row in each for id in row) < known
    packed = pack([(p.ids, [r.ids for r in g])
                   for p, g in zip(both.prompts, found[1], strict=True)])  # fmt: skip
    with torch.no_grad():
        options = {"temperature": sampling.temperature, "vocab_size": known}
        learner, _ = token_logprobs(both.policy.model, packed, **options)
    engine = torch.tensor([x for group in found[1] for r in group for x in r.logprobs])
    assert float((learner - engine).abs().max()) < TOLERANCE


def test_more_prompts_than_a_step_holds_wait_whole(both):
    # A prompt that is prefilled in pieces ends vLLM on a CPU, if its sample has a seed.
    groups = both.engine.generate(32 * both.prompts, 1, Sampling(2), seed=2)
    assert len(groups) == 256 and all(len(group[0].ids) == 2 for group in groups)


def change(model, seed: int) -> None:
    """Change the adapter by more than a step does, so that answers become others."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.02 * torch.randn(weight.shape, generator=draw)


@pytest.mark.ci
def test_after_a_sync_the_new_adapter_answers(both):
    before = answers(both.engine, both.prompts)
    change(both.policy.model, 1)
    assert answers(both.engine, both.prompts) == before, "not before the sync"
    for engine in (both.engine, both.own):
        engine.sync(3)
    after = answers(both.engine, both.prompts)
    assert after == answers(both.own, both.prompts) and after != before
    ((rollout,),) = both.engine.generate(both.prompts[:1], 1, Sampling(4), seed=0)
    assert rollout.version == 3
    if both.url:
        cards = httpx.get(f"{both.url}/v1/models").json()["data"]
        assert len([card for card in cards if card["parent"]]) == 1, "the last one was taken out"


@pytest.mark.ci
def test_a_withheld_sync_stops_the_run(both, monkeypatch):
    engine, backend = both.engine, both.engine._backend
    last, complete = engine._loaded, backend.complete
    change(both.policy.model, 2)
    with monkeypatch.context() as patched:
        # Nothing arrives: it goes on with the adapter that it has.
        patched.setattr(backend, "load", lambda version, folder: None)
        patched.setattr(backend, "unload", lambda version: None)
        patched.setattr(
            backend, "complete", lambda asked, version: complete(asked, version and last)
        )
        with pytest.raises(RunError, match=r"adapter version 4 has not arrived: .* differs from"):
            engine.sync(4)
    # Let through again, the same adapter arrives and the canary is content.
    engine._loaded, engine._digest = last, ""
    engine.sync(4)
    assert answers(engine, both.prompts[:2]) != [] and engine.version == 4


def test_a_server_of_another_base_is_refused(url, tmp_path):
    other = policy(TINY)
    with torch.no_grad():
        for weight in other.model.get_base_model().model.layers[0].mlp.parameters():
            weight *= 1.5
    plan = choice.VllmPlan(prompts(other.tokenizer), 64, 1.0, 8, 4, 0, "think", 0.0, tmp_path)
    with pytest.raises(InputError, match="another base model than the learner's"):
        choice.open_engine(other, "vllm", own={}, url=url, vllm=lambda: plan)


def test_a_training_with_a_server(url, place, tmp_path):
    base = place / "base"
    policy(base).model.save_pretrained(tmp_path / "start")
    words = ["--vllm-url", url, "--model", base, "--adapter", "start", "--output", "out"]
    succeed("train_grpo.py", *words, *SMALL, cwd=tmp_path, timeout=1700, forked=False)
    check_run(tmp_path)
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    assert sum(card["parent"] is not None for card in cards) <= 1, "only the other tests' is left"


def test_two_processes_share_a_server_and_spread_the_base(url, place, tmp_path):
    base = place / "base"
    policy(base).model.save_pretrained(tmp_path / "start")
    words = ["--vllm-url", url, "--model", base, "--adapter", "start", "--output", "out"]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
         str(ROOT / "train_grpo.py"), *map(str, (*words, *SMALL))],
        cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "spread" in manifest["proof"]["skipped"]
