"""What the tiny base can do before any fine-tuning: bare facts and worked questions, by number.

No output format is asked for: the last number of a reply is its answer.
"""

import random

import torch

from rlm.answers.reading import is_correct_leniently
from rlm.data.problems import additions, word_problems
from rlm.data.splits import split_of
from rlm.seeds import derive
from rlm.tiny import corpus


@torch.inference_mode()
def replies(model, tokenizer, prompts: list[str], max_tokens: int) -> list[str]:
    """Return the greedy continuations of the prompts, without the end token."""
    model.eval()
    out = []
    for i in range(0, len(prompts), 100):
        batch = tokenizer(prompts[i : i + 100], padding=True, padding_side="left",
                          return_tensors="pt")  # fmt: skip
        ids = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            max_new_tokens=max_tokens, do_sample=False,
        )  # fmt: skip
        out += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :],
                                      skip_special_tokens=True)  # fmt: skip
    return out


def scores(model, tokenizer, seed: int, n: int = 200) -> dict[str, float]:
    """Return shares, 0 to 1, of n held-out items each that are right by the last number said."""
    rng = random.Random(derive("facts", "test", seed))
    facts = [corpus.fact(rng) for _ in range(n)]
    # Without the sign "=": it is one token with the blank before the result.
    asked = [f"{s.left} {s.sign} {s.right}" for s in facts]
    said = replies(model, tokenizer, asked, 8)
    right = [t.split("\n")[0] == f" = {s.result}" for t, s in zip(said, facts, strict=True)]
    found = {"facts": sum(right) / n}
    for name, generate in (("additions", additions), ("word_problems", word_problems)):
        examples = generate(seed, n, split="test", keep=lambda q: split_of(q) == "test")
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": e.question}],
                tokenize=False, add_generation_prompt=True,
            )
            for e in examples
        ]  # fmt: skip
        said = replies(model, tokenizer, prompts, 160)
        right = [is_correct_leniently(t, e.gold) for t, e in zip(said, examples, strict=True)]
        found[name] = sum(right) / n
    return found
