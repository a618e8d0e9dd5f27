"""What the recipes share that teach the tiny base one thing more: their loop and command line.

A recipe is a module with its Settings, its texts and its scores: rlm/tiny/json_base.py,
rlm/tiny/tool_base.py.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlm.files import read_object
from rlm.tiny import recipe_parser


@dataclass(frozen=True)
class Recipe:
    """module, description, output: of the command line; output: the new base's folder.

    settings: a dataclass with the defaults, with base, steps, muon_rate, adam_rate, warmup_steps.
    batches(tokenizer, settings): yields (ids [rows, T], weights [rows, T]) without end.
    scores(model, tokenizer, settings): shares of held-out items, by name.
    prepare(model, tokenizer, settings): done first, in place; returns facts for the manifest.
    """

    module: str
    description: str | None
    output: str
    settings: Any
    batches: Callable[..., Iterator[tuple]]
    scores: Callable[..., dict[str, float]]
    prepare: Callable[..., dict] = lambda model, tokenizer, settings: {}


def learn(model, batches: Iterator[tuple], settings, log: Callable[[str], None] = print) -> float:
    """Train all weights in place, the rate rising and then falling to 0.

    Return the seconds of processor time.
    """
    from rlm.tiny.base import loss_of, optimizers_of, take_step

    began, shown = time.process_time(), None
    optimizers = optimizers_of(model, settings.muon_rate, settings.adam_rate)
    for step in range(1, settings.steps + 1):
        rise = min(1.0, step / settings.warmup_steps)
        loss = loss_of(model, *next(batches))
        take_step(model, optimizers, loss, rise * (1 - (step - 1) / settings.steps))
        shown = loss.item() if shown is None else 0.95 * shown + 0.05 * loss.item()
        if step % 50 == 0 or step == settings.steps:
            spent = time.process_time() - began
            log(f"step {step} of {settings.steps}, {spent:.0f} s: {shown:.4f}")
    return time.process_time() - began


def run(recipe: Recipe, arguments: list[str] | None = None) -> int:
    """The command line of a recipe, with a flag for each field of its Settings."""
    parser = recipe_parser(recipe.module, recipe.description, recipe.settings)
    parser.add_argument("--output", default=recipe.output, help="the new base's folder")
    parser.add_argument("--threads", type=int, default=1, help="processor threads, default 1")
    options = vars(parser.parse_args(arguments))
    output, threads = options.pop("output"), options.pop("threads")
    settings = type(recipe.settings)(**options)
    import torch

    from rlm.models.loading import find, load_base
    from rlm.tiny.base import round_weights, save, without_output_biases

    torch.set_num_threads(threads)
    model, tokenizer = load_base(settings.base, device="cpu", dtype="float32")
    model = without_output_biases(model.requires_grad_(True))
    facts = recipe.prepare(model, tokenizer, settings)
    batches = recipe.batches(tokenizer, settings)
    seconds = learn(model, batches, settings, lambda line: print(line, flush=True))
    round_weights(model)
    before = read_object(Path(find(settings.base)[0]) / "manifest.json")
    earlier = {"started_from": before} if "base" in before else {}
    manifest = {
        "base": settings.base,
        "base_weights_sha256": before.get("weights_sha256"),
        "settings": asdict(settings),
        **facts,
        "scores": recipe.scores(model, tokenizer, settings),
        "processor_seconds": round(seconds),
        **earlier,
    }
    save(model, tokenizer, Path(output), manifest)
    print(json.dumps(manifest, indent=2))
    return 0
