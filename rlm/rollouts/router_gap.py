"""Whether the engine and the learner send the same tokens to the same experts.

    router_gap(engine, model, batch.prompts, batch.groups)   # a share, or None

Both run two completions of a step again, with the weights that sampled them: the engine token by
token over its cache, the learner in one forward. For models whose experts are one module, given the
experts that each token chose, as transformers has them (Qwen3-MoE, Gemma 4, gpt-oss, Mixtral,
Granite), and for those whose routers sort the tokens themselves and return their logits (JetMoe).
"""

from contextlib import contextmanager
from functools import partial

import torch

from rlm.engine.engine import Engine
from rlm.engine.inference_model import evaluating
from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.sharding import sharded
from rlm.models.adapters import network_of
from rlm.models.lora_targets import expert_modules
from rlm.records import Prompt, Rollout

TOKENS = 64  # of each completion that are run again


def router_gap(engine, model, prompts: list[Prompt], groups: list[list[Rollout]]) -> float | None:
    """Return the share of (token, layer) whose chosen experts differ as a set, 0 to 1.

    Of the first tokens of the two longest completions of one question. None without experts, of
    another engine than ours, of a base that is spread over processes, or where nothing has two
    tokens.
    """
    network = network_of(model)
    if (
        not isinstance(engine, Engine)
        or sharded(model)
        or not (expert_modules(network) or gates(network))
    ):
        return None
    pairs = [sorted((r.ids for r in group), key=len)[-2:] for group in groups]
    chosen = max(range(len(pairs)), key=lambda b: len(pairs[b][0]))
    pair, prompt = pairs[chosen], prompts[chosen]
    count = min(TOKENS, *map(len, pair))
    pair = [ids[:count] for ids in pair]
    steps = count - 1  # nothing is asked behind the last token
    if not steps:
        return None
    with recorded(engine.network) as sampled:
        engine.replay(prompt, pair)
    # A step's first tokens are those of the running rows; the first step read the prompt.
    sampled = [[step[: len(pair)] for step in layer[1:]] for layer in sampled]
    if not sampled or any(len(layer) != steps for layer in sampled):
        return None  # a way of running that makes other forwards than a token a row
    engines = torch.stack([torch.stack(layer, dim=1) for layer in sampled])  # [L, rows, steps, k]
    learners = torch.stack([_learned(model, prompt.ids, ids) for ids in pair], dim=1)
    return (engines.cpu() != learners.cpu()).any(-1).double().mean().item()


def _learned(model, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Return the experts [L, steps, k] that the learner chooses for a completion's tokens."""
    network = network_of(model)
    packed = pack([(prompt, [ids])], device=network.get_input_embeddings().weight.device)
    with recorded(network) as layers, evaluating(model), torch.no_grad():
        token_logprobs(model, packed)
    return torch.stack([layer[-1][len(prompt) :] for layer in layers])


@contextmanager
def recorded(network):
    """Inside the block: yield, for each layer with experts, the [tokens, k] of each forward.

    The chosen experts of a token are sorted.
    """
    layers: list[list[torch.Tensor]] = []
    handles = []

    def add(chosen: torch.Tensor, calls: list[torch.Tensor]) -> None:
        calls.append(chosen.detach().flatten(0, -2).sort(-1).values)

    def given(module, args, more, calls):
        for value in (*args, *more.values()):
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                return add(value, calls)

    def returned(module, args, out, calls):
        add(out[-1].topk(module.top_k).indices, calls)

    try:
        for module in gates(network):
            layers.append([])
            handles.append(module.register_forward_hook(partial(returned, calls=layers[-1])))
        for module in expert_modules(network) if not layers else ():
            layers.append([])
            note = partial(given, calls=layers[-1])
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def gates(network) -> list:
    """Return the routers that return their logits [tokens, experts] last, and choose by them."""
    named = ("top_k", "num_experts", "layer")
    return [m for m in network.modules() if all(hasattr(m, name) for name in named)]
