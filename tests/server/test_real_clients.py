"""Packages that speak the open APIs, as their users have them, against a served port.

    python -m venv clients
    clients/bin/pip install langchain-openai langchain-tests pytest-asyncio litellm instructor
    npm install --prefix clients openai
    RLM_CLIENTS=clients python -m pytest -m "" tests/server/test_real_clients.py

They take an environment of their own, since they pin versions of what this project needs. The
browser's client runs in Debian's chromium.
"""

import json
import os
import re
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.server.test_page import CHROMIUM, listen, needs_browser, playwright
from tests.support.running import ROOT
from tests.support.serving import SUM, ask, policy, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEY = "k" * 20
FOLDER = Path(os.environ.get("RLM_CLIENTS", "clients")).expanduser().absolute()
PYTHON = FOLDER / "bin" / "python"
BROWSER_CLIENT = FOLDER / "node_modules" / "openai"
CASES = ROOT / "tests" / "support" / "clients"


@pytest.fixture(scope="module")
def place():
    with served(is_key=lambda given: given == KEY) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def needs(*packages: str) -> None:
    """Skip, and say what is missing, where the environment has not all of the packages."""
    if not PYTHON.exists():
        pytest.skip(f"not tested: no environment of clients in {FOLDER.name}, see RLM_CLIENTS")
    look = (
        "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if not u.find_spec(n)])"
    )
    missing = subprocess.run([PYTHON, "-c", look, *packages], capture_output=True, text=True)
    if missing.stdout.strip() or missing.returncode:
        pytest.skip(f"not tested: {missing.stdout.strip() or missing.stderr[-200:]} is missing")


def run(place, *words) -> str:
    """Run Python words in the clients' environment; return what was printed."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("RLM_", "PYTEST_"))}
    variables |= {"URL": place.url, "KEY": KEY, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [PYTHON, *map(str, words)], env=variables, capture_output=True, text=True, cwd=FOLDER
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_langchains_standard_tests_pass():
    needs("langchain_openai", "langchain_tests", "pytest_asyncio")
    # They say hello and want words: the adapter answers with a lone closing tag, the base does not.
    with policy().model.disable_adapter(), served(is_key=lambda given: given == KEY) as place:
        said = _standard_tests(place)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= 17 and "failed" not in said, said[-3000:]


def _standard_tests(place) -> str:
    # Its client keeps connections from test to test, and so its event loop.
    scopes = [f"asyncio_default_{of}_loop_scope=session" for of in ("test", "fixture")]
    return run(
        place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest",
        "--asyncio-mode=auto", "-o", scopes[0], "-o", scopes[1], "-c", os.devnull,
        CASES / "langchain_standard.py",
    )  # fmt: skip


def test_litellm(place):
    needs("litellm")
    found = json.loads(run(place, CASES / "litellm_calls.py").splitlines()[-1])
    ours = ask(place, temperature=0).json()
    for name in ("openai/tiny", "hosted_vllm/tiny"):
        got = found[name]
        assert (got["content"], got["streamed"], got["finish"]) == ("46", "46", "stop")
        assert got["reasoning"] == got["streamed_reasoning"] == ours["reasoning"]
        assert got["tokens"] == ours["usage"]["completion_tokens"]
    assert not found["effort"] and found["text"] > 0
    assert "response_format" in found["refused"] and "free text" in found["refused"]


def test_instructor_is_told_what_cannot_be_kept(place):
    needs("instructor", "openai")
    found = json.loads(run(place, CASES / "instructor_calls.py").splitlines()[-1])
    assert "tools: this cannot be kept" in found["TOOLS"]
    for mode in ("JSON", "JSON_SCHEMA"):
        assert "response_format: this cannot be kept" in found[mode]
    # It reads JSON out of plain text: the request is taken, and 46 is no object.
    assert "cannot be kept" not in found["MD_JSON"]
    assert found["free"] == "46"


PAGE = """<!doctype html><title>client</title><script type="module">
import OpenAI from "/node_modules/openai/index.mjs";
const client = new OpenAI({baseURL: "AT/v1", apiKey: "KEY", dangerouslyAllowBrowser: true,
                           maxRetries: 0});
const asked = {model: "tiny", messages: [{role: "user", content: "SUM"}], temperature: 0};
const found = {streamed: "", thought: ""};
try {
  const done = await client.chat.completions.create(asked);
  found.content = done.choices[0].message.content;
  found.reasoning = done.choices[0].message.reasoning_content;
  for await (const chunk of await client.chat.completions.create({...asked, stream: true})) {
    found.streamed += chunk.choices[0]?.delta.content ?? "";
    found.thought += chunk.choices[0]?.delta.reasoning_content ?? "";
  }
  found.models = (await client.models.retrieve("tiny")).id;
  found.response = (await client.responses.create({model: "x", input: "SUM", temperature: 0}))
    .output_text;
  try { await client.chat.completions.create({...asked, tools: [{type: "function"}]}); }
  catch (error) { found.refused = [error.status, error.param]; }
} catch (error) { found.failed = String(error); }
document.title = JSON.stringify(found);
</script>"""


@needs_browser
def test_openais_client_in_a_browser():
    if not (BROWSER_CLIENT / "index.mjs").is_file():
        pytest.skip("not tested: npm install --prefix FOLDER openai, and RLM_CLIENTS=FOLDER")

    class Files(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}
        page = b""

        def do_GET(self):
            if self.path != "/":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.page)

        def log_message(self, *words):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(FOLDER)))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{site.server_port}"
    try:
        with served(is_key=lambda given: given == KEY, cors_origins=[origin]) as place:
            page = PAGE.replace("AT/v1", f"{place.url}/v1").replace("KEY", KEY).replace("SUM", SUM)
            Files.page = page.encode()
            with playwright.sync_playwright() as started:
                arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
                browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
                tab = browser.new_page()
                complaints = listen(tab)
                tab.goto(origin)
                tab.wait_for_function("document.title.startsWith('{')", timeout=240_000)
                found = json.loads(tab.title())
                browser.close()
            place.client.headers["Authorization"] = f"Bearer {KEY}"
            ours = ask(place, temperature=0).json()
    finally:
        site.shutdown()
    assert "failed" not in found and not complaints, (found, complaints)
    assert found["content"] == found["streamed"] == found["response"] == "46"
    assert found["reasoning"] == found["thought"] == ours["reasoning"]
    assert (found["models"], found["refused"]) == ("tiny", [400, "tools"])
