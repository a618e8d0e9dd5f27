"""Makes weights/tiny_json_base: the tiny base with embeddings for the characters of JSON.

    python -m rlm.tiny_json                      # a second

The tiny base's text has no braces, brackets or quotes. Their embeddings, tied to the output, never
learned anything: they differ by less than rounding lets a LoRA tell apart, so no fine-tuning of
linear layers makes the base write JSON. Here the rows of such tokens are drawn anew, as one does
for tokens that are added to a vocabulary; everything else is the tiny base, bit for bit. What to
do with them it has to learn (SFT on random graphs, configs/orchestrator.yaml).
"""

import argparse
from pathlib import Path

from rlm.files import read_object
from rlm.seeds import derive

CHARACTERS = '{"agents":[{"id":"a","prompt":"","reads":[]},{"id":"b","prompt":"","reads":["a"]}]}'
ALIKE = 0.1  # rows that are nearer to each other than this never learned to differ
KEPT = 0.5  # of their common direction, which keeps them unlikely where nobody asks for them
FRESH = 2.0  # length of what is drawn for each of them; rows that learned have 2 to 3


def unlearned(weight, ids: list[int]) -> list[int]:
    """Return those of the ids whose row of weight [V, H] has another one nearer than ALIKE."""
    import torch

    rows = torch.cdist(weight[ids].float(), weight.float())  # [n, V]
    rows[torch.arange(len(ids)), torch.tensor(ids)] = float("inf")
    return [id for id, near in zip(ids, rows.amin(1).tolist(), strict=True) if near < ALIKE]


def revive(model, tokenizer, seed: int = 0) -> list[int]:
    """Draw the rows of CHARACTERS that never learned anew, in place; return their ids."""
    import torch

    weight = model.get_input_embeddings().weight
    ids = sorted(set(tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]))
    found = unlearned(weight, ids)
    generator = torch.Generator().manual_seed(derive("tiny json", seed))
    fresh = torch.randn(len(found), weight.shape[1], generator=generator)
    fresh = FRESH * fresh / fresh.norm(dim=1, keepdim=True)  # [n, H]
    with torch.no_grad():
        weight[found] = (KEPT * weight[found].float() + fresh).to(weight.dtype)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="weights/tiny_base", help="default weights/tiny_base")
    parser.add_argument("--seed", type=int, default=0, help="of the new rows, default 0")
    parser.add_argument("--output", default="weights/tiny_json_base", help="the new base's folder")
    options = parser.parse_args(arguments)
    from rlm.models import find, load_base
    from rlm.tiny import save

    model, tokenizer = load_base(options.base, device="cpu", dtype="bfloat16")
    found = revive(model, tokenizer, options.seed)
    before = read_object(Path(find(options.base)[0]) / "manifest.json")
    tokens = [tokenizer.decode([id]) for id in found]
    manifest = {"base": options.base, "base_weights_sha256": before.get("weights_sha256"),
                "seed": options.seed, "drawn_anew": tokens}  # fmt: skip
    save(model, tokenizer, Path(options.output), manifest)
    print(f"{options.output}: drawn anew {' '.join(tokens)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
