"""The endpoint with httpx: one reply, a vote, a stream.

python examples/python_httpx.py                            # http://127.0.0.1:8000
URL=https://... KEY=... python examples/python_httpx.py    # over ngrok
"""

import json
import os
import time

import httpx

URL = os.environ.get("URL", "http://127.0.0.1:8000")
KEY = os.environ.get("KEY", "none")  # needed where the server has one
QUESTION = "Calculate 23 + 15 + 8"


def ask(client: httpx.Client, **fields) -> dict:
    """Return the reply; while the server is full, wait as long as it says and ask again."""
    while True:
        reply = client.post("/phase1/reasoning", json=fields)
        if reply.status_code not in (429, 503) or "Retry-After" not in reply.headers:
            break
        time.sleep(int(reply.headers["Retry-After"]))
    if reply.is_error:
        raise SystemExit(f"{reply.status_code}: {reply.json()['error']['message']}")
    return reply.json()


def stream(client: httpx.Client, **fields):
    """Yield (event, data) as they arrive."""
    asked = fields | {"stream": True}
    with client.stream("POST", "/phase1/reasoning", json=asked) as reply:
        if reply.is_error:
            raise SystemExit(f"{reply.status_code}: {json.loads(reply.read())['error']['message']}")
        name = ""
        for line in reply.iter_lines():  # whole lines, however the network cuts them
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def main() -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=130) as client:
        reply = ask(client, prompt=QUESTION, temperature=0)
        print(f"reasoning:\n{reply['reasoning']}\nanswer: {reply['answer']}")

        reply = ask(client, prompt="Calculate 417 + 85 + 9", n=8, seed=1)
        print(f"votes: {reply['vote']['votes']}, answer: {reply['answer']}")

        print("stream:")
        for event, data in stream(client, prompt=QUESTION, temperature=0):
            if event == "reasoning":
                print(data["delta"], end="", flush=True)
            elif event == "done":
                speed = data["timing"]["tokens_per_second"]
                print(f"\nanswer: {data['answer']} ({speed} tokens/s)")
            elif event == "error":
                raise SystemExit(data["error"]["message"])


if __name__ == "__main__":
    main()
