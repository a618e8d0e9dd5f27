"""What does not go with --train full, each told in one line with what to do."""

from rlm.errors import InputError
from rlm.models.lookup import is_adapter

LORA = ("lora_r", "lora_alpha", "lora_targets", "lora_dropout", "rslora")


def check(settings) -> None:
    """InputError for what does not go with the weights that learn."""
    if settings.train == "lora":
        if settings.optimizer == "adamw8bit":
            raise InputError(f"{settings.given('optimizer')}: a LoRA's state is small; leave it "
                             "out, or use --train full")  # fmt: skip
        if settings.optimizer == "muon" and getattr(settings, "backend", "own") == "trl":
            raise InputError(f"{settings.given('optimizer')}: not with --backend trl, it is of our "
                             "own learner; leave it out, or use --backend own")  # fmt: skip
        return
    if settings.optimizer == "muon":
        raise InputError(f"{settings.given('optimizer')}: is for a LoRA, whose weights are all "
                         "matrices; leave it out, or use --train lora")  # fmt: skip
    if settings.quantize != "none":
        raise InputError(f"{settings.given('quantize')}: weights in 4 bits cannot learn; leave it "
                         "out, or use --train lora")  # fmt: skip
    for name in LORA:  # in a file they are meant for trainings of a LoRA
        if settings._origins.get(name, "").startswith("--"):
            raise InputError(f"{settings.given(name)}: --train full has no LoRA; leave it out, or "
                             "use --train lora")  # fmt: skip
    if getattr(settings, "backend", "own") == "trl":
        raise InputError(f"{settings.given('backend')}: its optimiser keeps no float32 copy of "
                         "weights in half precision, so that small steps would be lost; use "
                         "--backend own, or --train lora")  # fmt: skip
    if settings.task == "orchestrator" and settings.agent_model is None:
        raise InputError("--train full: the orchestrator's agents run on the base as it is, "
                         "which is gone when all weights learn; give --agent-model, or use "
                         "--train lora")  # fmt: skip


def check_start(settings) -> None:
    """InputError for a start that all weights cannot go on from."""
    if settings.train == "full" and settings.adapter and is_adapter(settings.adapter):
        raise InputError(f"{settings.given('adapter')}: a LoRA, of which --train full has none; "
                         "merge it by `python -m rlm.export merged` and give that by --model, "
                         "or use --train lora")  # fmt: skip
