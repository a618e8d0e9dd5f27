"""litellm against the server at $URL with the key $KEY; prints one line of JSON."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for its prices

import litellm

litellm.telemetry = False
AT = {"api_base": f"{os.environ['URL']}/v1", "api_key": os.environ["KEY"], "num_retries": 0}
TURNS = [{"role": "user", "content": "Calculate 23 + 15 + 8"}]
ASKED = {"messages": TURNS, "temperature": 0, "max_tokens": 200}


def first(reply):
    return reply.choices[0]


found = {}
for name in ("openai/tiny", "hosted_vllm/tiny"):
    done = litellm.completion(model=name, **ASKED, **AT)
    message = first(done).message
    found[name] = {
        "content": message.content,
        "reasoning": getattr(message, "reasoning_content", None),
        "finish": first(done).finish_reason,
        "tokens": done.usage.completion_tokens,
    }
    chunks = list(litellm.completion(model=name, stream=True, **ASKED, **AT))
    deltas = [first(chunk).delta for chunk in chunks if chunk.choices]
    found[name]["streamed"] = "".join(delta.content or "" for delta in deltas)
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    found[name]["streamed_reasoning"] = "".join(thoughts)
effort = litellm.completion(
    model="openai/tiny",
    reasoning_effort="none",
    allowed_openai_params=["reasoning_effort"],
    **ASKED,
    **AT,
)
found["effort"] = getattr(first(effort).message, "reasoning_content", None)
text = litellm.text_completion(
    model="text-completion-openai/tiny", prompt="Calculate", max_tokens=4, **AT
)
found["text"] = len(first(text).text)
try:
    litellm.completion(
        model="openai/tiny",
        response_format={"type": "json_object"},
        **ASKED,
        **AT,
    )
except litellm.BadRequestError as error:
    found["refused"] = str(error)
print(json.dumps(found))
