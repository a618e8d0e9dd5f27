"""GRPO on one page: train_grpo.py without the machinery around it, the same names in their order.

    python examples/grpo_from_scratch.py          # additions; about a minute of one core

    step         0     1     2     3     4     5     6    % right of 250 held-out questions
    seed 0     5.6   4.8  19.2  92.8  94.4  94.4  94.4
    seed 1     4.8   5.2  60.4  94.4  94.4  94.0  94.0
    seed 2     9.6  15.2  74.4  93.2  93.6  93.6  93.2

Left out on purpose:
    settings, runs   one experiment in one process; nothing of it is written
    token budget     a micro-batch is a group, divided by the counts of the whole step
    clipping         one update a batch, so the ratio to the policy that sampled is always 1
"""

import argparse
import sys
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # rlm, where it is not installed
from rlm import add_lora, additions, is_correct, load_base, make_prompt, measure, sft_tokens
from rlm.engine.engine import Engine, Sampling
from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.losses import advantages, policy_loss
from rlm.seeds import derive

FORMAT, MAX_TOKENS = "think", 160  # <think>reasoning</think>answer; the longest that is sampled
BATCH_SIZE, QUESTIONS_PER_STEP, GROUP_SIZE = 8, 16, 8  # of SFT; B and G of GRPO
SFT_RATE, LEARNING_RATE = 6e-3, 1e-3  # at their peak; 2e-4 and 2e-5 for a real model


def train(count: int, steps: int, seed: int) -> None:
    # 1. Questions with known answers; the policy; the engine that samples from it.
    examples = additions(seed, count, terse_fraction=0.6)  # as in configs/tiny_demo.yaml
    asked = frozenset(example.question for example in examples)
    validation = additions(seed, 250, split="validation", exclude=asked)
    model, tokenizer = load_base("weights/tiny_base")
    model = add_lora(model, r=16, alpha=32, seed=seed).train()
    engine = Engine(model, tokenizer)

    # 2. The adapter to start from: SFT teaches the format, to guess and to work step by step.
    sft(model, tokenizer, examples)
    engine.sync()
    show(0, engine, tokenizer, validation)

    # 3. Sample, score, compare, update.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, steps + 1):
        questions = Random(derive("questions", seed, step)).sample(examples, QUESTIONS_PER_STEP)
        prompts, groups = sample(engine, tokenizer, questions, derive("rollouts", seed, step))
        rewards = score(questions, groups)
        advantage = advantages(rewards)  # [B, G]
        warmup, fall = min(1, step / 3), 1 - (step - 1) / steps
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warmup * fall
        update(model, tokenizer, optimizer, prompts, groups, advantage)
        engine.sync(step)
        show(step, engine, tokenizer, validation)


def sample(engine, tokenizer, examples, seed: int):
    """Return (prompts [B], groups [B][G]): G answers to each question, by the current policy."""
    prompts = [make_prompt(example.question, tokenizer, FORMAT) for example in examples]
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0)
    return prompts, engine.generate(prompts, GROUP_SIZE, sampling, seed=seed)


def score(examples, groups) -> torch.Tensor:
    """Return the rewards [B, G]: 1 if the final number is right, else 0."""
    pairs = zip(examples, groups, strict=True)
    return torch.tensor([[float(is_correct(r.text, e.gold, FORMAT)) for r in g] for e, g in pairs])


def update(model, tokenizer, optimizer, prompts, groups, advantage) -> None:
    """Make the better answers' tokens likelier, the others' less so: one optimiser step."""
    tokens = sum(len(rollout.ids) for group in groups for rollout in group)
    whole_step = {"tokens": tokens, "sequences": advantage.numel(), "max_tokens": MAX_TOKENS}
    for b in advantage.any(1).nonzero()[:, 0].tolist():  # the others' gradient is exactly 0
        pieces = pack([(prompts[b].ids, [r.ids for r in groups[b]])], device=model.device)
        logprobs, _ = token_logprobs(model, pieces, vocab_size=len(tokenizer))  # [N]
        token_advantages = pieces.per_token(advantage[b])  # [N]
        loss, _ = policy_loss(logprobs, None, token_advantages, pieces.sequence, **whole_step)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def sft(model, tokenizer, examples) -> None:
    """Make the demonstrations' tokens likelier, in one pass over them."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    tokens = [sft_tokens(example, tokenizer, FORMAT) for example in examples]
    groups = [(each["prompt_ids"], [each["completion_ids"]]) for each in tokens]
    for start in range(0, len(groups), BATCH_SIZE):
        pieces = pack(groups[start : start + BATCH_SIZE], device=model.device)
        logprobs, _ = token_logprobs(model, pieces, vocab_size=len(tokenizer))  # [N]
        (-logprobs.mean()).backward()
        warmup, fall = min(1, (start + BATCH_SIZE) / 100), 1 - start / len(groups)
        optimizer.param_groups[0]["lr"] = SFT_RATE * warmup * fall
        optimizer.step()
        optimizer.zero_grad()


def show(step: int, engine, tokenizer, validation) -> None:
    """Print the greedy accuracy on the held-out questions."""
    found = measure(engine, tokenizer, validation, FORMAT, name="", max_tokens=MAX_TOKENS)
    accuracy = found.summary["accuracy"]
    print(f"step {step:2}  accuracy {accuracy:6.1%}  {'#' * round(50 * accuracy)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SFT, then GRPO, of the tiny base on additions.")
    parser.add_argument("--examples", type=int, default=2000, help="to learn from (default 2000)")
    parser.add_argument("--steps", type=int, default=6, help="of GRPO (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="of data, LoRA and samples (default 0)")
    given = parser.parse_args()
    if given.examples < QUESTIONS_PER_STEP or given.steps < 1:
        parser.error(f"--examples {given.examples} --steps {given.steps}: use 16 and 1 or more")
    train(given.examples, given.steps, given.seed)
