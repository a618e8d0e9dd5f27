"""What clients of the open APIs send that cannot be kept here: a 400 that names it, never silence.

A field that changes nothing passes: one about bookkeeping, null, or a value that is what happens
anyway, such as a penalty of 0.
"""

import re
from typing import Any

from rlm.cli.layers import nearest
from rlm.server.errors import ApiError
from rlm.server.requests import Request

# What a field is about has no influence on what is answered.
BOOKKEEPING = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "prediction", "priority", "request_id",
    "keep_alive", "cache_prompt", "parallel_tool_calls", "stream_options", "conversation_id",
    "return_token_ids", "moderation",
}  # fmt: skip
NO_TOOLS = "the model calls the server's own tools only (serve.py --tools)"
NO_SCHEMA = "the model writes free text, in no given shape"
NO_PENALTY = "tokens are drawn without penalties"
# field -> the values that change nothing, and why the others cannot be kept.
UNKEPT: dict[str, tuple[tuple, str]] = {
    "tools": (([],), NO_TOOLS),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "functions": (([],), NO_TOOLS),
    "function_call": (("none", "auto"), NO_TOOLS),
    "max_tool_calls": ((), NO_TOOLS),
    "response_format": (({"type": "text"},), NO_SCHEMA),
    "text": (
        ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
        NO_SCHEMA,
    ),
    "structured_outputs": (({},), NO_SCHEMA),
    "guided_json": ((), NO_SCHEMA),
    "guided_regex": ((), NO_SCHEMA),
    "guided_choice": ((), NO_SCHEMA),
    "guided_grammar": ((), NO_SCHEMA),
    "grammar": (("",), NO_SCHEMA),
    "format": (("",), NO_SCHEMA),
    "verbosity": (("medium",), "how much the model says is not set"),
    "modalities": ((["text"],), "the model writes text only"),
    "audio": ((), "the model writes text only"),
    "web_search_options": ((), "the model looks nothing up"),
    "frequency_penalty": ((0,), NO_PENALTY),
    "presence_penalty": ((0,), NO_PENALTY),
    "repetition_penalty": ((1,), NO_PENALTY),
    "repeat_penalty": ((1,), NO_PENALTY),
    "length_penalty": ((1,), NO_PENALTY),
    "logit_bias": (({}, []), "the logits are the model's own"),
    "min_p": ((0,), "it is none of the ways in which tokens are drawn; use top_p or top_k"),
    "typical_p": ((1,), "it is none of the ways in which tokens are drawn; use top_p or top_k"),
    "tfs_z": ((1,), "it is none of the ways in which tokens are drawn; use top_p or top_k"),
    "mirostat": ((0,), "it is none of the ways in which tokens are drawn; use top_p or top_k"),
    "use_beam_search": ((False,), "tokens are drawn one by one"),
    "best_of": ((1,), "no sample is chosen by its probability; use n"),
    "min_tokens": ((0,), "a completion ends where the model ends it"),
    "ignore_eos": ((False,), "a completion ends where the model ends it"),
    "stop_token_ids": (([],), "use stop, with texts"),
    "bad_words": (([],), "no token is ruled out"),
    "allowed_token_ids": ((), "no token is ruled out"),
    "skip_special_tokens": ((True,), "what the model writes is told as it is"),
    "spaces_between_special_tokens": ((True,), "what the model writes is told as it is"),
    "include_stop_str_in_output": ((False,), "a stop text is left out"),
    "add_generation_prompt": ((True,), "an answer always begins a new turn"),
    "continue_final_message": ((False,), "an answer always begins a new turn"),
    "prompt_logprobs": ((0,), "log-probabilities are told of what is sampled only"),
    "echo": ((False,), "what is sampled is told only"),
    "suffix": (("",), "the model goes on with a text, it fills in none"),
    "include_reasoning": ((True,), "leave the reasoning unread, or use reasoning_effort none"),
    "separate_reasoning": ((True,), "reasoning and answer are always apart"),
    "stream_reasoning": ((True,), "reasoning and answer are always apart"),
    "think": ((True,), "use reasoning_effort"),
    "thinking": (({"type": "enabled"}, {"type": "auto"}), "use reasoning_effort"),
    "previous_response_id": ((), "no conversation is kept here; send all of it"),
    "conversation": ((), "no conversation is kept here; send all of it"),
    "prompt": ((), "no prompt is kept here; send the text"),
    "background": ((False,), "an answer is sent when it is there"),
    "truncation": (("disabled",), "nothing is cut off what is too long"),
    "include": (([],), "there is nothing more to tell"),
    "context_management": (([],), "nothing is cut off what is too long"),
}


class OpenRequest(Request):
    """A request of an API whose clients send more than is known here."""

    @classmethod
    def kept(cls, given: dict) -> dict:
        others = {name: value for name, value in given.items() if name not in cls.model_fields}
        wrong = [
            name
            for name, value in others.items()
            if value is not None and name not in BOOKKEEPING and not _idle(name, value)
        ]
        if wrong:  # tools before tool_choice, whatever came first
            raise unkept(next((name for name in UNKEPT if name in wrong), wrong[0]), cls)
        return {name: value for name, value in given.items() if name not in others}


def _idle(name: str, value: Any) -> bool:
    """Return whether a value is what happens anyway."""
    return name in UNKEPT and value in UNKEPT[name][0]


def unkept(name: str, model: type[Request]) -> ApiError:
    """Return the error for a field that cannot be kept."""
    # A name is the client's own text: it comes back only if it looks like one.
    shown = name if re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII) else None
    if shown in UNKEPT:
        message = f"{shown}: this cannot be kept: {UNKEPT[shown][1]}; leave it out"
    else:
        hint = nearest(shown or "", model.model_fields)
        message = f"{shown or 'a field'}: there is no such field here{hint or '; leave it out'}"
    return ApiError(400, "unsupported_parameter", message, param=shown)
