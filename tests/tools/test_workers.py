"""Tools of a file: processes of their own, which may hang, raise, die or say too much."""

import time

import pytest

from rlm.engine.engine import Sampling
from rlm.errors import InputError
from rlm.tools.toolbox import Toolbox, load_tools
from rlm.tools.workers import ToolWorkers
from tests.engine.test_tool_calls import PROMPTS, TOKENIZER, engine_of, small
from tests.support.tool_models import Often

FILE = '''
"""Tools of all sorts."""
import os, sys, time
print("what a file prints is nobody's business")

def echo(text: str) -> str:
    """Says it again."""
    print("noise")
    return text

def hangs(text: str) -> str:
    """Never comes back."""
    while True:
        time.sleep(1)

def large(text: str) -> str:
    """Returns a megabyte."""
    return "x" * 1_000_000

def raises(text: str) -> str:
    """Raises."""
    raise ValueError("no such\\ntext " + text)

def dies(text: str) -> str:
    """Ends its process."""
    os._exit(3)

def number(n: int = 4) -> int:
    """Returns a number."""
    return n + 1

def _helper(x): return x
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_tools.py"
    path.write_text(FILE)
    return str(path)


def test_a_file_has_tools(file, tmp_path):
    tools = {tool.name: tool for tool in load_tools(file)}
    assert list(tools) == ["echo", "hangs", "large", "raises", "dies", "number"]
    assert tools["number"].about == "Returns a number." and tools["number"].tag == "number"
    wrong = {
        "x = 1": "no public function", "def f(x): 'doc'": "needs a type", "1 +": "SyntaxError",
        "def calculator(x: str): 'doc'": "another",
    }  # fmt: skip
    for number, (text, why) in enumerate(wrong.items()):
        path = tmp_path / f"bad{number}.py"
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            load_tools(str(path))


def test_every_call_comes_to_an_end(file):
    pool = ToolWorkers(file, seconds=0.5, most=2)
    try:
        names = ["echo", "hangs", "large", "raises", "dies", "echo", "number"]
        jobs = [pool.submit(name, {"text": "é"} if name != "number" else {}) for name in names]
        dropped = pool.submit("echo", {"text": "nobody asks"})
        dropped.drop()
        began = time.monotonic()
        while any(job.outcome is None for job in jobs) and time.monotonic() - began < 60:
            pool.wait(0.1)
        outcomes = [job.outcome for job in jobs]
        assert [o.failure for o in outcomes] == [
            None, "timeout", None, "error", "died", None, None
        ]  # fmt: skip
        assert outcomes[0].text == outcomes[5].text == "é" and outcomes[6].text == "5"
        assert 1000 < len(outcomes[2].text) <= 20_000
        assert outcomes[3].text == "ValueError: no such text é"
        assert pool.replaced == 2 and dropped.outcome is None
    finally:
        pool.close()
    assert not pool._workers


class Chosen(Often):
    """A call of the tool that its characters choose."""

    def __init__(self, tools):
        super().__init__()
        self.tools = tools

    def read(self, call):
        return self.tools[sum(map(ord, call.inside)) % len(self.tools)], {"text": call.inside}


def test_a_run_goes_on_whatever_its_tools_do(file):
    tools = load_tools(file)[:5]
    box = Toolbox(tools, max_calls=4, result_tokens=12, seconds=0.3)
    box.bound(TOKENIZER).form = Chosen(tools)
    try:
        sampling = Sampling(24, temperature=0.9, tools=box)
        groups = engine_of(small()).generate(PROMPTS, 3, sampling, seed=1)
    finally:
        box.close()
    calls = [call for group in groups for rollout in group for call in rollout.calls]
    failures = {tool.name: {c.failure for c in calls if c.name == tool.name} for tool in tools}
    assert {name: found - {"too_many"} for name, found in failures.items()} == {
        "echo": {None}, "hangs": {"timeout"}, "large": {"cut"}, "raises": {"error"},
        "dies": {"died"},
    }  # fmt: skip
    assert all(call.tokens <= 12 + len("<result></result>") for call in calls)
    assert all(r.finish in ("stop", "length") for group in groups for r in group)
