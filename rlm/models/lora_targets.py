"""Which layers of a model a LoRA goes on, by what a user calls them.

found(model, ("all-linear",))       every linear layer but the output head and what peft mistakes
found(model, ("attention",))        the linear layers inside attention
found(model, ("q_proj", "v_proj"))  by the last parts of their names
found(model, ("experts",))          weights of three dimensions, [expert, .., ..]
found(model, ("router",))           what chooses experts: learned only if it is asked for
"""

import re

from rlm.models.adapters import ModelError

ATTENTION = re.compile(r"(^|[._])(attn|attention)([._]|$)")  # as a part of a module's name
ROUTER = re.compile(r"(^|\.)(router|gate|router\.(layer|proj|classifier))$")
WORDS = ("all-linear", "attention", "experts", "router")


def found(model, targets: tuple[str, ...]) -> dict:
    """Return target_modules and the like of a LoraConfig; ModelError for one that is not there."""
    linear, mistaken = linear_names(model), taken_for_experts(model)
    routers = sorted(name for name in linear if ROUTER.search(name))
    # Of a model with experts peft's own "all-linear" means experts and routers, too.
    if targets == ("all-linear",) and not (routers or expert_names(model)):
        return {"target_modules": "all-linear"}
    modules: set[str] = set()
    parameters: list[str] = []
    for target in targets:
        if target == "experts":
            matching = expert_names(model)
            parameters += matching
        elif target == "router":
            weights = router_weights(model)
            modules.update(routers)
            parameters += weights
            matching = routers + weights
        elif target == "all-linear":
            matching = [
                name
                for name in linear
                if name not in routers and name.rpartition(".")[2] not in mistaken
            ]
            modules.update(matching)
        elif target == "attention":
            matching = [name for name in linear if ATTENTION.search(name.rpartition(".")[0])]
            modules.update(".".join(name.split(".")[-2:]) for name in matching)
        else:
            if target.rpartition(".")[2] in mistaken:
                raise ModelError(
                    f"--lora-targets {target}: peft takes this name for the experts' own weights "
                    f"of {type(model).__name__}; use experts, or names without "
                    f"{', '.join(sorted(mistaken))}"
                )
            matching = [name for name in linear if name == target or name.endswith(f".{target}")]
            modules.add(target)
        if not matching:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ModelError(
                f"--lora-targets {target}: {type(model).__name__} has no such layer; use "
                f"{', '.join(WORDS)}, or names out of {', '.join(known)}"
            )
    return {"target_modules": sorted(modules)} | (
        {"target_parameters": parameters} if parameters else {}
    )


def taken_for_experts(model) -> set[str]:
    """Return last parts of names by which peft means a family's experts, none for most.

    An adapter of the days when experts were linear layers names them so, and peft changes such a
    target into the experts' weights, also where a shared expert or a dense layer was meant.
    """
    try:
        from peft.utils import transformers_weight_conversion as peft_names
    except ImportError:  # another version of peft
        return set()
    kinds = getattr(peft_names, "_MODEL_TO_CONVERSION_PATTERN", {})
    named = getattr(peft_names, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(named.get(kinds.get(model.config.model_type), {})) - {"gate"}


def linear_names(model) -> list[str]:
    """Return the names of the linear layers, the output head left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, kinds = model.get_output_embeddings(), (nn.Linear, Conv1D)
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and m is not head]


def router_weights(model) -> list[str]:
    """Return the ends of the names of routers' weights that are no linear layer's."""
    linear = set(linear_names(model))
    names = [
        f"{n}.weight"
        for n, m in model.named_modules()
        if ROUTER.search(n) and n not in linear and "weight" in m._parameters
    ]
    return sorted({".".join(name.split(".")[-3:]) for name in names})


def expert_modules(model) -> list:
    """Return the modules that hold weights [expert, in, out], a layer's after the other's."""
    return [
        module
        for name, module in model.named_modules()
        if "experts" in name and any(p.dim() == 3 for p in module.parameters(recurse=False))
    ]


def expert_names(model) -> list[str]:
    """Return the ends of the names of weights [expert, in, out], as peft matches them."""
    names = [n for n, p in model.named_parameters() if p.dim() == 3 and "experts" in n]
    return sorted({".".join(name.split(".")[-2:]) for name in names})
