"""What the settings of tools come to: the tools, and what does not go with them."""

from rlm.errors import InputError

TRAINED = ("tools", "tool_form", "max_tool_calls", "tool_tokens")  # kept with an adapter


def trained(settings: dict) -> dict:
    """Return what an adapter's settings say of tools, {} if it had none.

    Those of a file are left out: a file is run, so it is always given by hand.
    """
    return {name: settings[name] for name in TRAINED if settings.get("tools") and name in settings}


def toolbox(settings):
    """Return the `rlm.tools.toolbox.Toolbox` of the settings, None without tools.

    InputError for a tool that is not known, or a file that cannot be used.
    """
    from rlm.tools.toolbox import Toolbox, built_in, load_tools

    found = built_in(settings.tools)
    found += load_tools(settings.tool_file) if settings.tool_file else []
    if not found:
        return None
    return Toolbox(
        found,
        form=settings.tool_form,
        max_calls=settings.max_tool_calls,
        result_tokens=settings.tool_tokens,
        seconds=settings.tool_seconds,
    )


def check(settings) -> None:
    """InputError for what does not go with tools."""
    if not (settings.tools or settings.tool_file):
        for name in ("max_tool_calls", "tool_tokens", "tool_form", "tool_seconds"):
            if settings._origins.get(name, "").startswith("--"):
                raise InputError(f"{settings.given(name)}: there are no tools; leave it out, or "
                                 "give --tools calculator or a --tool-file")  # fmt: skip
        return
    given = settings.given("tools" if settings.tools else "tool_file")
    if getattr(settings, "task", "") == "orchestrator":
        raise InputError(f"{given}: task orchestrator writes graphs, which call no tools; leave "
                         "it out")  # fmt: skip
    if settings.script == "grpo" and settings.engine == "vllm":
        raise InputError(f"{given}: vllm samples a completion in one piece and cannot stop for a "
                         "call; use --engine own")  # fmt: skip
    if settings.script == "grpo" and settings.backend == "trl":
        raise InputError(f"{given}: not with --backend trl, which samples by transformers; use "
                         "--backend own")  # fmt: skip
    if getattr(settings, "upstream", None):
        raise InputError(f"{given}: not with --upstream, whose servers sample a completion in one "
                         "piece; leave one of them out")  # fmt: skip
    toolbox(settings)
