"""Ask every prompt of prompts.jsonl and compare the answers with those that are kept there.

    python examples/prompts.py                            # http://127.0.0.1:8000
    URL=https://... KEY=... python examples/prompts.py    # over ngrok
    python examples/prompts.py --write                    # keep what the server says now

The kept answers are those of the shipped adapter (weights/final_rlm_lora) at temperature 0.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

URL = os.environ.get("URL", "http://127.0.0.1:8000")
KEY = os.environ.get("KEY", "none")  # needed where the server has one
FILE = Path(__file__).parent / "prompts.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the answers of this server")
    write = parser.parse_args().write
    kept = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=130) as client:

        def ask(line: dict) -> dict:
            asked = {"prompt": line["prompt"], "temperature": 0}
            reply = client.post("/phase1/reasoning", json=asked).raise_for_status().json()
            return line | {"answer": reply["answer"], "reasoning": reply["reasoning"]}

        with ThreadPoolExecutor(4) as pool:  # the server runs them together
            found = list(pool.map(ask, kept))
    for old, new in zip(kept, found, strict=True):
        right = "right" if new["answer"] == new["gold"] else f"wrong, it is {new['gold']}"
        changed = "" if new["answer"] == old.get("answer") else f", kept was {old.get('answer')}"
        print(f"{new['prompt']} -> {new['answer']} ({right}{changed})")
    if write:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        FILE.write_text(text, encoding="utf-8")
    same = all(old.get("answer") == new["answer"] for old, new in zip(kept, found, strict=True))
    return 0 if same or write else 1


if __name__ == "__main__":
    raise SystemExit(main())
