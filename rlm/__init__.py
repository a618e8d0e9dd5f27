"""How it is done: formats, answers, generation, learning. The scripts at the root import this.

As a library: `from rlm import Engine, advantages, ...` gives the names below, each imported when
it is first asked for. `import rlm` alone is quick and imports no torch. docs/library.md shows all.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# TRL and the hub's client tell the hub of each use, unless this is set before they are imported.
# A value that the user has given stays.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ.get("HF_HUB_DISABLE_TELEMETRY") or "1"

if TYPE_CHECKING:  # what an editor or a type checker reads; the same names as NAMES
    from rlm.answers.reading import is_correct, read_answer
    from rlm.data.problems import additions
    from rlm.engine.engine import Engine
    from rlm.engine.sampling import Sampling
    from rlm.evaluation.measure import measure
    from rlm.learner.logprobs import pack, token_logprobs
    from rlm.learner.losses import advantages, policy_loss
    from rlm.models.adapters import load_adapter, save_adapter
    from rlm.models.loading import add_lora, load_base
    from rlm.models.prompts import make_prompt, sft_tokens
    from rlm.records import Example
    from rlm.report.report import write as write_report

# Name -> its module, and its name there where that is another one. No name is that of a room
# (rlm.report, rlm.engine): those are packages.
NAMES = {
    "Engine": "rlm.engine.engine",
    "Example": "rlm.records",
    "Sampling": "rlm.engine.sampling",
    "add_lora": "rlm.models.loading",
    "additions": "rlm.data.problems",
    "advantages": "rlm.learner.losses",
    "is_correct": "rlm.answers.reading",
    "load_adapter": "rlm.models.adapters",
    "load_base": "rlm.models.loading",
    "make_prompt": "rlm.models.prompts",
    "measure": "rlm.evaluation.measure",
    "pack": "rlm.learner.logprobs",
    "policy_loss": "rlm.learner.losses",
    "read_answer": "rlm.answers.reading",
    "save_adapter": "rlm.models.adapters",
    "sft_tokens": "rlm.models.prompts",
    "token_logprobs": "rlm.learner.logprobs",
    "write_report": "rlm.report.report:write",
}

__all__ = [
    "Engine", "Example", "Sampling", "add_lora", "additions", "advantages", "is_correct",
    "load_adapter", "load_base", "make_prompt", "measure", "pack", "policy_loss", "read_answer",
    "save_adapter", "sft_tokens", "token_logprobs", "write_report",
]  # fmt: skip


def __getattr__(name: str):
    """Import what is asked for (PEP 562); the next time it is an attribute like any other."""
    if name not in NAMES:
        raise AttributeError(
            f"module 'rlm' has no name {name!r}; known are {', '.join(NAMES)}; a module of its "
            "own is imported by its path, such as `import rlm.engine.engine`"
        )
    module, _, there = NAMES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), there or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})
