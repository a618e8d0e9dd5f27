"""The endpoint with the `openai` package (pip install openai): any program that takes a base URL.

python examples/python_openai.py                            # http://127.0.0.1:8000
URL=https://... KEY=... python examples/python_openai.py    # over ngrok
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("KEY", "none"),  # the package wants one even where the server does not
)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Calculate 23 + 15 + 8"}]

reply = client.chat.completions.create(model=model, messages=messages, temperature=0)
message = reply.choices[0].message
print(f"reasoning:\n{message.reasoning_content}\nanswer: {message.content}")

print("stream:")
chunks = client.chat.completions.create(
    model=model,
    messages=messages,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
answer = ""
for chunk in chunks:
    for choice in chunk.choices:
        thought = getattr(choice.delta, "reasoning_content", None)
        print(thought or "", end="", flush=True)
        answer += choice.delta.content or ""
    if chunk.usage:  # the last chunk
        print(f"\nanswer: {answer} ({chunk.usage.completion_tokens} tokens)")
