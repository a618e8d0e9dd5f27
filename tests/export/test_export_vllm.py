"""A merged export in the real vLLM, in this process and served: the answers of our own engine."""

import httpx
import pytest

from rlm.answers import formats
from rlm.data import problems
from rlm.engine.engine import Engine, Sampling
from rlm.export import export
from rlm.models.policy import open_policy
from rlm.models.prompts import make_prompt
from tests.support.real_vllm import needs_vllm, serving
from tests.support.running import ROOT

pytestmark = needs_vllm
ADAPTER = ROOT / "weights/final_rlm_lora"
EXAMPLES = problems.additions(3, 8)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The exported folder, the prompts and what our own engine answers to them."""
    folder = tmp_path_factory.mktemp("export") / "merged"
    words = ["--adapter", str(ADAPTER), "--output", str(folder)]
    assert export.main(["merged", *words, "--dtype", "float32", "--device", "cpu"]) == 0
    opened = open_policy(None, str(ADAPTER), device="cpu", dtype="float32")
    prompts = [make_prompt(e.question, opened.tokenizer, "think") for e in EXAMPLES]
    engine = Engine(opened.model, opened.tokenizer)
    groups = engine.generate(prompts, 1, Sampling(160, temperature=0.0), seed=0)
    return folder, prompts, [rollout for (rollout,) in groups]


@pytest.mark.ci
def test_it_answers_in_this_process(merged):
    from rlm.rollouts.vllm_local import quiet

    quiet()
    from vllm import LLM, SamplingParams

    folder, prompts, ours = merged
    model = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=512,
                kv_cache_memory_bytes=2**28)  # fmt: skip
    try:
        # Nothing is told but greedy and the length: where it stops is what the folder says.
        told = SamplingParams(temperature=0.0, max_tokens=160)
        found = model.generate([{"prompt_token_ids": p.ids} for p in prompts], told, use_tqdm=False)
    finally:
        model.llm_engine.engine_core.shutdown(timeout=15)
    assert [list(each.outputs[0].token_ids) for each in found] == [r.ids for r in ours]
    assert [each.outputs[0].finish_reason for each in found] == [r.finish for r in ours]


def test_it_answers_a_chat_as_a_server(merged, tmp_path):
    folder, _, ours = merged
    told = {"role": "system", "content": formats.get_format("think").instruction}
    with serving(folder, tmp_path, "--max-model-len", 512) as url:
        for example, rollout in zip(EXAMPLES, ours, strict=True):
            turns = [told, {"role": "user", "content": example.question}]
            body = {"model": str(folder), "messages": turns, "temperature": 0, "max_tokens": 160}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
            (choice,) = answer.raise_for_status().json()["choices"]
            assert choice["message"]["content"] == rollout.text
            assert choice["finish_reason"] == rollout.finish == "stop"
