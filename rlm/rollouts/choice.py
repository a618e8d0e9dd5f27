"""Which engine samples in a training: our own, or vLLM, here or on a server.

    engine = open_engine(policy, "own", own={...})
    engine = open_engine(policy, "vllm", url=None, vllm=VllmPlan(...))

An engine has generate(), sync(), context_tokens and close(). It does not know settings; nothing of
vLLM is imported unless it is asked for.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.engine.engine import Engine
from rlm.errors import InputError
from rlm.records import Prompt


@dataclass(frozen=True)
class VllmPlan:
    """What vLLM is opened for.

    prompts: the longest that are known. max_tokens, temperature: of the sampling. completions: of
    a step; group_size: of a question. token_budget: of a micro-batch, 0 by what is free.
    checkpointing: of the learner, see `rlm.learner.token_budget.TokenBudget`.
    format_name: of the answers. tolerance: of the canary, 0 by the number format. folder: of the
    run, inside which adapters are handed over; None for the system's temporary files. seeds: "on"
    for one of each completion, "off", or "auto": where the learner is on a CPU. seed: of vLLM here,
    for completions without one. ahead: whether the next step's answers are sampled while a step
    is learned, for a server.
    """

    prompts: list[Prompt]
    max_tokens: int
    temperature: float
    completions: int
    group_size: int
    token_budget: int
    format_name: str
    tolerance: float
    folder: Path | None
    checkpointing: str = "auto"
    seeds: str = "auto"
    seed: int = 0
    ahead: bool = False


def open_engine(policy, name: str, *, own: dict, url: str | None = None, vllm=None):
    """Return the engine `name`, own, transformers or vllm, of the policy as it is now.

    own: for `rlm.engine.engine.Engine`. vllm: a function that returns the `VllmPlan`. url: of a
    server.
    """
    if name != "vllm":
        return Engine(policy.model, policy.tokenizer, **own)
    assert vllm is not None
    return open_vllm(policy, vllm(), url)


def open_vllm(policy, plan: VllmPlan, url: str | None):
    """Return the `VllmEngine` of a plan. InputError where vLLM cannot be used with the policy."""
    from rlm.engine.inference_model import context_tokens
    from rlm.rollouts.ahead import AheadEngine
    from rlm.rollouts.canary import SAMPLED, canary_text
    from rlm.rollouts.vllm_engine import VllmEngine
    from rlm.rollouts.vllm_sizes import context, lora_rank

    network = policy.model.get_base_model()
    if getattr(network.config, "quantization_config", None):
        raise InputError("--engine vllm: the learner's base is quantised, vLLM's would not be the "
                         "same; leave --quantize out, or use --engine own")  # fmt: skip
    if any(getattr(c, "target_parameters", None) for c in policy.model.peft_config.values()):
        raise InputError("--engine vllm: the adapter has a LoRA on experts or a router, which vLLM "
                         "does not take in this form; use --engine own")  # fmt: skip
    ranks = [config.r for config in policy.model.peft_config.values()]
    text = len(canary_text(policy.tokenizer, plan.format_name)) + SAMPLED
    lengths = [len(prompt.ids) for prompt in plan.prompts]
    limit = context_tokens(network)
    sizes = {
        "rank": lora_rank(max(ranks)),
        "context": context(lengths, plan.max_tokens, text, limit),
    }
    backend: Any
    if url:
        from rlm.rollouts.vllm_server import ServedVllm

        backend, tokens = ServedVllm(url, **sizes), 0
    else:
        backend, tokens = _local(policy, plan, sizes)
    try:
        engine = (AheadEngine if plan.ahead else VllmEngine)(
            policy.model,
            policy.tokenizer,
            backend,
            folder=Path(tempfile.mkdtemp(prefix="adapters-", dir=plan.folder)),
            format_name=plan.format_name,
            temperature=plan.temperature,
            tolerance=plan.tolerance,
            seeded=plan.seeds == "on" or (plan.seeds == "auto" and network.device.type == "cpu"),
        )
        engine.learner_tokens = tokens
        return engine
    except BaseException:
        backend.close()
        raise


def _local(policy, plan: VllmPlan, sizes: dict):
    """Return the backend in this script, its memory what a step of the learner leaves.

    And the tokens of the micro-batches that it was sized for, 0 where that was not measured.
    """
    from rlm.models.memory import free_bytes, token_bytes
    from rlm.rollouts import vllm_sizes
    from rlm.rollouts.vllm_local import LocalVllm

    network = policy.model.get_base_model()
    device, each, tokens = network.device, token_bytes(network), 0
    rows = vllm_sizes.rows(plan.completions)
    if device.type == "cpu":
        size = vllm_sizes.cpu_cache_bytes(free_bytes(device), each, rows, sizes["context"])
        memory: dict = {"kv_cache_memory_bytes": size}
    else:
        free, total, pending, tokens = _after_learning(policy, plan)
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        one = each * sizes["context"]
        share = vllm_sizes.gpu_share(free, total, pending, weights, one)
        memory = {"gpu_memory_utilization": share}
    place = {"dtype": str(network.dtype).removeprefix("torch."), "device": device.type}
    more: dict = {"known": len(policy.tokenizer), "seed": plan.seed}
    return LocalVllm(policy.base, **place, **sizes, **more, rows=rows, memory=memory), tokens


def _after_learning(policy, plan: VllmPlan) -> tuple[int, int, int, int]:
    """Return (free, total, pending) bytes of the GPU after a step of the learner at full size.

    What the step took stays reserved for the learner. pending: what its optimiser takes later.
    The fourth: the tokens of the step's micro-batch. InputError if none fits.
    """
    import torch

    from rlm.learner.rehearsal import ADAM_BYTES, rehearse
    from rlm.learner.token_budget import TokenBudget

    model, size = policy.model, len(policy.tokenizer)
    longest = max((prompt.ids for prompt in plan.prompts), key=len)
    group = (longest, [longest[-1:]] * plan.group_size)
    most, again = len(longest) + plan.max_tokens, plan.checkpointing
    budget = TokenBudget(model, size, plan.token_budget, longest=most, checkpointing=again)
    learning = rehearse(
        model,
        [group],
        budget.tokens,
        max_tokens=plan.max_tokens,
        most_groups=max(1, plan.completions // plan.group_size),
        temperature=plan.temperature,
        vocab_size=size,
    )
    if not learning.fits:
        raise InputError("a step of the learner does not fit into the GPU's memory; use a smaller "
                         "--max-tokens or --token-budget")  # fmt: skip
    free, total = torch.cuda.mem_get_info(model.device)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return free, total, ADAM_BYTES * learned, learning.budget_tokens
