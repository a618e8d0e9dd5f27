"""instructor against the server at $URL with the key $KEY; prints one line of JSON.

It asks for structured answers, which a model of free text cannot promise: what is told matters.
"""

import json
import os

import instructor
from openai import OpenAI
from pydantic import BaseModel

TURNS = [{"role": "user", "content": "Calculate 23 + 15 + 8"}]


class Sum(BaseModel):
    value: int


found = {}
plain = OpenAI(base_url=f"{os.environ['URL']}/v1", api_key=os.environ["KEY"], max_retries=0)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA,
             instructor.Mode.MD_JSON):  # fmt: skip
    asking = instructor.from_openai(plain, mode=mode)
    try:
        made = asking.chat.completions.create(
            model="tiny", messages=TURNS, response_model=Sum, max_retries=1, temperature=0,
            max_tokens=200,
        )  # fmt: skip
        found[mode.name] = f"answered {made.value}"
    except Exception as error:  # whatever it makes of the server's answer
        found[mode.name] = f"{type(error).__name__}: {error}"[:2000]
free = instructor.from_openai(plain, mode=instructor.Mode.MD_JSON).chat.completions.create(
    model="tiny", messages=TURNS, response_model=None, temperature=0, max_tokens=200
)
found["free"] = free.choices[0].message.content
print(json.dumps(found))
