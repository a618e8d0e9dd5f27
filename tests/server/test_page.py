"""The page in a real browser: mostly against a stub that fails on demand, once against serve.py.

    PAGE_SCREENSHOT=docs/page.png python -m pytest tests/server/test_page.py -k real_server

also writes the screenshot of the README. The browser is Debian's chromium.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.support.page_stub import PAGE, PageStub, done, element, event, happy_events, policy
from tests.support.running import ROOT

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is not tested: pip install playwright"
)
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="the page is not tested: apt-get install chromium"
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def stub():
    with PageStub() as running:
        yield running


@pytest.fixture
def context(browser):
    made = browser.new_context(viewport={"width": 1200, "height": 800})
    yield made
    made.close()


@pytest.fixture
def page(context, stub):
    """The stub's page, opened; fails at the end if the browser complained about it."""
    tab = context.new_page()
    complaints = listen(tab)
    tab.goto(stub.url)
    yield tab
    assert not complaints


def listen(tab) -> list[str]:
    """Collects errors of the page's script and breaches of its policy as they come."""
    complaints = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    # A refused request is logged too ("Failed to load resource"); the tests want those.
    tab.on(
        "console",
        lambda said: (
            complaints.append(said.text)
            if said.type == "error" and "Failed to load resource" not in said.text
            else None
        ),
    )
    return complaints


def ask(tab, question="Calculate 23 + 15 + 8"):
    tab.get_by_label("Question").fill(question)
    tab.get_by_role("button", name="Ask", exact=True).click()


def button(tab, name):
    return tab.get_by_role("button", name=name, exact=True)


def text(tab, identifier: str) -> str:
    """The exact text of an element, folded away or not."""
    return tab.locator(f"#{identifier}").evaluate("e => e.textContent")


# ---- Without a browser ----


def test_the_page_is_one_file_with_nothing_inline():
    source = PAGE.read_text(encoding="utf-8")
    assert element(source, "style") and element(source, "script")
    markup = source.replace(element(source, "script"), "").replace(element(source, "style"), "")
    assert not re.search(r"\s(style|on\w+|srcset|action)\s*=", markup)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", markup), "nothing is loaded"
    assert "http" not in element(source, "script") and "url(" not in element(source, "style")
    script = element(source, "script")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    assert "localStorage" not in script and "cookie" not in script


# ---- An answer ----


@needs_browser
def test_thinking_streams_then_folds_and_the_answer_is_large(page, stub):
    def reply(exchange):
        exchange.begin()
        for piece in happy_events():
            exchange.wait()
            exchange.send(piece)
        exchange.end()

    stub.reply = reply
    ask(page)
    thinking, thought = page.locator("#thinking"), page.locator("#thought")
    expect(thought).to_contain_text("Waiting for the first token")
    for _ in range(3):  # start, a comment, the first part of the reasoning
        stub.go()
    expect(page.get_by_role("region", name="Reasoning")).to_have_text("23 + ")
    expect(thought).to_contain_text(re.compile(r"^Thinking… \d+\.\d s$"))
    expect(thinking).to_have_attribute("open", "")
    stub.go()
    expect(page.get_by_role("region", name="Reasoning")).to_contain_text("38 + 8 = 46")
    expect(page.locator("#answer")).to_have_text("")
    stub.go()  # the answer begins: the reasoning folds
    expect(page.locator("#answer")).to_have_text("46")
    expect(thinking).not_to_have_attribute("open", "")
    expect(button(page, "Stop")).to_be_visible()
    stub.go()
    stub.go()
    expect(button(page, "Ask")).to_be_visible()
    expect(thought).to_have_text(re.compile(r"^Thought for \d+\.\d s, 1,204 tokens$"))
    expect(page.locator("#figures")).to_contain_text("4.2 s")
    expect(page.locator("#figures")).to_contain_text("293 tokens/s")
    expect(page.get_by_role("status")).to_contain_text("Answer: 46")
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    assert page.locator("#answer").evaluate(size) >= 2.5 * page.locator("body").evaluate(size)
    thought.click()
    expect(page.get_by_role("region", name="Reasoning")).to_be_visible()
    assert text(page, "reasoning") == "23 + 15 = 38\n38 + 8 = 46"


@needs_browser
def test_calls_of_tools_are_folded_where_they_stand(page, stub):
    before, call, after = "\U0001d7ea * 9 = ", "<b>8 * 9</b><result>72</result>", ", then <i>"
    second = "<b></b><result>error: </result>"
    places = [len(before), len(before + call), len(before + call + after)]
    told = {"index": 0, "name": "calculator", "arguments": "{}", "tokens": 3,
            "channel": "reasoning"}  # fmt: skip
    first = told | {"result": "72", "failure": None, "start": places[0], "end": places[1]}
    end = places[2] + len(second)
    last = told | {"result": "<u>", "failure": "bad_arguments", "start": places[2], "end": end}

    def reply(exchange):
        exchange.begin()
        exchange.send(happy_events()[0], event("reasoning", index=0, delta=before + call))
        exchange.send(event("tool", **first))
        exchange.wait()
        exchange.send(event("reasoning", index=0, delta=after + second + " so"))
        exchange.send(event("tool", **last), *happy_events()[4:])
        exchange.end()

    stub.reply = reply
    ask(page)
    folds = page.locator("#reasoning details")
    expect(folds.locator("summary")).to_have_text(["calculator: 72"])
    page.locator("#thought").click()
    page.locator("#thought").click()  # open, whatever comes
    folds.locator("summary").click()
    stub.go()
    expect(button(page, "Ask")).to_be_visible()
    expect(folds.locator("summary")).to_have_text(
        ["calculator: 72", "calculator: <u> (bad arguments)"]
    )
    assert folds.evaluate_all("all => all.map(one => one.open)") == [True, False]
    assert folds.locator("div").all_text_contents() == [call, second]
    nodes = "e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data)"
    assert page.locator("#reasoning").evaluate(nodes) == [before, after, " so"]
    expect(page.locator("#figures")).to_contain_text("Calls of tools2")


@needs_browser
def test_who_opens_the_reasoning_keeps_it_open(page, stub):
    def reply(exchange):
        exchange.begin()
        exchange.send(*happy_events()[:4])
        exchange.wait()
        exchange.send(*happy_events()[4:])
        exchange.end()

    stub.reply = reply
    ask(page)
    expect(page.locator("#reasoning")).to_contain_text("38 + 8")
    page.locator("#thought").click()  # folded by hand, and opened again
    page.locator("#thought").click()
    stub.go()
    expect(button(page, "Ask")).to_be_visible()
    expect(page.locator("#thinking")).to_have_attribute("open", "")


@needs_browser
def test_samples_vote_and_each_can_be_read(page, stub):
    answers = ["45", "46", "46", None]

    def reply(exchange):
        exchange.begin()
        exchange.send(event("start", id="r-1", seed=5, model="stub"))
        for index, given in enumerate(answers):
            exchange.send(event("reasoning", index=index, delta=f"way number {index}"))
            exchange.send(event("answer", index=index, delta=given or "?"))
            exchange.send(event("sample", index=index, answer=given, finish_reason="stop"))
            if index == 1:
                exchange.wait()
        exchange.send(done("46", {"46": 2, "45": 1}, vote={
            "n": 4, "winner": "46", "votes": {"46": 2, "45": 1}, "agreement": 0.5}))  # fmt: skip
        exchange.end()

    stub.reply = reply
    page.get_by_label("Samples", exact=True).fill("4")
    ask(page)
    expect(page.locator("#answer")).to_have_text("2 of 4 samples have answered")
    expect(page.get_by_role("list", name="Votes").get_by_role("listitem")).to_have_count(2)
    stub.go()
    expect(page.locator("#answer")).to_have_text("46")
    rows = page.get_by_role("list", name="Votes").get_by_role("listitem")
    expect(rows).to_have_text([re.compile("46.*2 of 4"), re.compile("45.*1 of 4")])
    expect(rows.nth(0)).to_have_class("best")
    widths = [rows.nth(i).locator("i").bounding_box()["width"] for i in (0, 1)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    expect(page.locator("#note")).to_have_text(
        "2 of 4 samples agree. 1 gave no answer that could be read."
    )
    expect(page.locator("#thought")).to_have_text(re.compile(r", 1,204 tokens in 4 samples$"))
    assert stub.asked[0].body["n"] == 4
    page.locator("#thought").click()
    expect(button(page, "Sample 2: 46")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#reasoning")).to_have_text("way number 1")  # the first to say so
    button(page, "Sample 1: 45").click()
    expect(page.locator("#reasoning")).to_have_text("way number 0")
    expect(button(page, "Sample 1: 45")).to_have_attribute("aria-pressed", "true")
    expect(button(page, "Sample 4: no answer")).to_have_attribute("aria-pressed", "false")


@needs_browser
def test_of_tied_answers_the_first_stands_first(page, stub):
    def reply(exchange):
        samples = [event("sample", index=i, answer=a) for i, a in enumerate(["46", "45"])]
        exchange.stream([*samples, done("46", {"45": 1, "46": 1})])  # a script would sort them

    stub.reply = reply
    page.get_by_label("Samples", exact=True).fill("2")
    ask(page)
    expect(page.locator("#note")).to_contain_text("Of the tied answers the first counts.")
    expect(page.locator("#votes li").nth(0)).to_have_text(re.compile("^46.*1 of 2$"))


@needs_browser
def test_a_text_without_a_readable_answer_is_shown_as_it_is(page, stub):
    events = happy_events(answer="perhaps forty-six")[:5]
    stub.reply = lambda exchange: exchange.stream([*events, done(None)])
    ask(page)
    expect(page.locator("#note")).to_have_text("No answer could be read in this text.")
    expect(page.locator("#answer")).to_have_text("perhaps forty-six")


@needs_browser
def test_a_reasoning_that_was_cut_off_stays_open(page, stub):
    events = [*happy_events()[:4], done(None, finish_reason="length")]
    stub.reply = lambda exchange: exchange.stream(events)
    ask(page)
    expect(page.locator("#note")).to_contain_text("token limit")
    expect(page.locator("#answer")).to_have_text("No answer")
    expect(page.locator("#thinking")).to_have_attribute("open", "")


@needs_browser
def test_whatever_the_model_writes_stays_text(page, stub):
    bad = "<img src=x onerror=alert(1)><script>document.title='taken'</script>"
    stub.reply = lambda exchange: exchange.stream(happy_events(bad, bad))
    stub.health["model"] = bad
    page.reload()
    ask(page, bad)
    expect(button(page, "Ask")).to_be_visible()
    for place in ("asked", "reasoning", "answer", "model"):
        assert text(page, place) == bad
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Ask the reasoning model"


# ---- Asking ----


@needs_browser
def test_an_example_is_asked_by_a_click(page, stub):
    examples = page.get_by_role("group", name="Examples").get_by_role("button")
    assert examples.count() >= 3
    wanted = examples.nth(1).text_content()
    examples.nth(1).click()
    expect(page.locator("#answer")).to_have_text("46")
    expect(page.get_by_label("Question")).to_have_value(wanted)
    assert stub.asked[0].body == {"prompt": wanted, "stream": True}


@needs_browser
def test_the_options_are_sent_and_empty_ones_are_not(page, stub):
    page.get_by_text("Options", exact=True).click()
    for label, value in {"Temperature": "0.5", "Seed": "12", "Max tokens": "300",
                         "Max thinking tokens": "200", "Time limit": "9"}.items():  # fmt: skip
        page.get_by_label(label).fill(value)
    ask(page, "1 + 1")
    expect(page.locator("#answer")).to_have_text("46")
    assert stub.asked[0].body == {
        "prompt": "1 + 1", "stream": True, "temperature": 0.5, "seed": 12, "max_tokens": 300,
        "max_reasoning_tokens": 200, "timeout_s": 9,
    }  # fmt: skip
    page.get_by_label("Max tokens").fill("5000")  # the server has said 1,024
    ask(page, "1 + 1")
    assert not page.get_by_label("Max tokens").evaluate("e => e.validity.valid")
    assert len(stub.asked) == 1


@needs_browser
def test_keyboard_alone_is_enough(page, stub):
    def reply(exchange):
        exchange.begin()
        exchange.send(*happy_events()[:3])
        exchange.wait_until_gone()

    expect(page.get_by_label("Question")).to_be_focused()
    page.keyboard.press("Enter")  # nothing to ask yet
    expect(page.get_by_role("alert")).to_contain_text("There is no question yet")
    page.keyboard.type("23 + 15")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("+ 8")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text("46")
    assert [exchange.body["prompt"] for exchange in stub.asked] == ["23 + 15\n+ 8"]
    stub.reply = reply
    button(page, "Ask").focus()
    page.keyboard.press("Enter")
    expect(button(page, "Stop")).to_be_focused()
    expect(page.locator("#reasoning")).to_have_text("23 + ")  # or nothing has been asked yet
    page.keyboard.press("Escape")
    expect(button(page, "Ask")).to_be_focused()
    assert stub.gone.wait(15)


@needs_browser
def test_stop_ends_the_request_itself(page, stub):
    def reply(exchange):
        exchange.begin()
        exchange.send(*happy_events()[:3])
        exchange.wait_until_gone()

    stub.reply = reply
    ask(page)
    expect(page.locator("#reasoning")).to_have_text("23 + ")
    assert not stub.gone.is_set()
    button(page, "Stop").click()
    assert stub.gone.wait(15), "the connection must be closed"
    expect(page.locator("#note")).to_contain_text("Stopped after")
    expect(page.locator("#reasoning")).to_have_text("23 + ")
    expect(page.get_by_role("alert")).to_be_empty()
    stub.reply = lambda exchange: exchange.stream(happy_events())
    ask(page)
    expect(page.locator("#answer")).to_have_text("46")


# ---- The key ----


@needs_browser
def test_a_401_asks_for_the_key_and_keeps_it_in_the_tab_only(page, stub, context, browser):
    def reply(exchange):
        if exchange.key == "Bearer right-key":
            exchange.stream(happy_events())
        else:
            exchange.refuse(401, "authentication_error", "give a key")

    stub.reply = reply
    ask(page)
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    assert stub.asked[0].key is None
    field.fill("no spaces allowed")
    button(page, "Use this key").click()
    expect(page.locator("#key-why")).to_contain_text("without spaces")
    field.fill("wrong-key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-why")).to_contain_text("refused this key")
    field.fill("right-key")
    page.keyboard.press("Enter")  # the question goes out again by itself
    expect(page.locator("#answer")).to_have_text("46")
    expect(field).to_be_hidden()
    assert page.evaluate("Object.values(sessionStorage)") == ["right-key"]
    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [
        0, "", stub.url]  # fmt: skip
    assert "right-key" not in page.content()
    page.reload()
    ask(page)
    expect(page.locator("#answer")).to_have_text("46")
    assert stub.asked[-1].key == "Bearer right-key"
    other = context.new_page()
    other.goto(stub.url)
    assert other.evaluate("sessionStorage.length") == 0
    button(page, "Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0


@needs_browser
def test_the_key_is_asked_for_at_once_where_health_says_so(page, stub):
    stub.health["key_required"] = True
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    page.get_by_label("API key").fill("some-key")
    button(page, "Use this key").click()
    expect(page.get_by_label("Question")).to_be_focused()
    assert not stub.asked


# ---- Faults ----


@needs_browser
def test_a_429_counts_down_and_can_be_asked_again(context, stub):
    tab = context.new_page()
    tab.clock.install()  # time passes when the test says so
    tab.goto(stub.url)
    stub.reply = lambda exchange: exchange.refuse(
        429, "overloaded", "64 requests are waiting; ask later", retry_after=3
    )
    ask(tab)
    expect(tab.get_by_role("alert")).to_contain_text("All places are taken")
    expect(tab.get_by_role("alert")).to_contain_text("64 requests are waiting")
    expect(button(tab, "Try again in 3 s")).to_be_disabled()
    tab.clock.run_for(1_100)
    expect(button(tab, "Try again in 2 s")).to_be_disabled()
    tab.clock.run_for(2_000)
    stub.reply = lambda exchange: exchange.stream(happy_events())
    button(tab, "Try again").click()
    expect(tab.locator("#answer")).to_have_text("46")
    expect(tab.get_by_role("alert")).to_be_empty()
    assert stub.asked[0].body == stub.asked[1].body


@needs_browser
@pytest.mark.parametrize(
    ("status", "code", "message", "title", "again"),
    [
        (400, "context_length_exceeded", "1,100 tokens, room for 1,024", "does not fit", False),
        (413, "too_large", "at most 256 KiB", "too long to send", False),
        (422, "invalid_request", "n above 1 needs a temperature", "does not accept", False),
        (500, "internal_error", "see the server's log", "Something broke", True),
        (503, "not_ready", "loading", "still loading", True),
        (503, "shutting_down", "going down", "shutting down", True),
        (504, "timeout", "30 s are over", "time limit was over", True),
    ],
)
def test_errors_are_readable(page, stub, status, code, message, title, again):
    stub.reply = lambda exchange: exchange.refuse(status, code, message)
    ask(page)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(title)
    expect(alert).to_contain_text(message)
    expect(alert).to_contain_text("Request req-77")
    expect(button(page, "Try again")).to_have_count(int(again))
    expect(page.get_by_role("region", name="Result")).to_be_hidden()


@needs_browser
def test_a_refused_field_is_shown(page, stub):
    stub.reply = lambda exchange: exchange.refuse(
        422, "invalid_request", "n above 1 needs a temperature above 0", param="temperature"
    )
    ask(page)
    field = page.get_by_label("Temperature")
    expect(field).to_be_focused()  # so the options are open
    expect(field).to_have_attribute("aria-invalid", "true")
    stub.reply = lambda exchange: exchange.stream(happy_events())
    ask(page)
    expect(page.locator("#answer")).to_have_text("46")
    expect(field).not_to_have_attribute("aria-invalid", "true")


@needs_browser
def test_a_connection_that_breaks_off_keeps_what_has_come(page, stub):
    def reply(exchange):
        exchange.begin()
        exchange.send(*happy_events()[:3])
        exchange.wait()
        exchange.break_off()

    stub.reply = reply
    ask(page)
    expect(page.locator("#reasoning")).to_have_text("23 + ")
    stub.go()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke off")
    expect(page.locator("#reasoning")).to_have_text("23 + ")
    stub.reply = lambda exchange: exchange.stream(happy_events()[:-1])  # ends without done
    button(page, "Try again").click()
    expect(page.locator("#answer")).to_have_text("46")
    expect(page.get_by_role("alert")).to_contain_text("The connection broke off")
    stub.reply = lambda exchange: exchange.stream(happy_events())
    button(page, "Try again").click()
    expect(page.locator("#figures")).to_contain_text("tokens/s")
    expect(page.get_by_role("alert")).to_be_empty()


@needs_browser
def test_an_error_within_the_stream(page, stub):
    error = {"code": "engine_dead", "type": "error", "message": "ask again later", "param": None}
    events = [*happy_events()[:3], event("error", error=error | {"request_id": "req-9"})]
    stub.reply = lambda exchange: exchange.stream(events)
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("The model has stopped working")
    expect(page.get_by_role("alert")).to_contain_text("ask again later")
    expect(page.locator("#reasoning")).to_have_text("23 + ")
    expect(button(page, "Try again")).to_be_enabled()


@needs_browser
def test_a_server_that_is_gone_and_a_reply_of_another(page, stub):
    stub.reply = lambda exchange: exchange.plain(200, "<html>hello", "text/html")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("This reply is not the server's")
    stub.reply = lambda exchange: exchange.plain(502, "<html>bad gateway", "text/html")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("status 502")
    page.route("**/phase1/reasoning", lambda route: route.abort("connectionrefused"))
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("could not be reached")
    expect(button(page, "Try again")).to_be_enabled()


# ---- The reader of the stream ----

CUT = """
const real = window.fetch;
window.fetch = async (url, options) => {
  const reply = await real(url, options);
  if (!String(url).endsWith("/phase1/reasoning")) return reply;
  const bytes = new Uint8Array(await reply.arrayBuffer());
  let at = 0;
  const body = new ReadableStream({ pull(out) {
    if (at >= bytes.length) { out.close(); return; }
    out.enqueue(bytes.slice(at, at + window.cut));
    at += window.cut;
  } });
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
};
"""


@needs_browser
@pytest.mark.parametrize(
    ("line_end", "sizes"),
    [(b"\n", range(1, 41)), (b"\r\n", (1, 2, 3, 5, 8, 13, 21, 34))],
    ids=["lf", "crlf"],
)
def test_the_stream_may_be_cut_anywhere(context, stub, line_end, sizes):
    # The page's own reader gets the same bytes in pieces of exactly so many bytes. Characters
    # of 2, 3 and 4 bytes: an odd prefix for each size shifts where the cuts fall.
    reasoning = "Müller hat 23 € — 日本 🧮 = ∑\n\ndata: kein Ereignis\n: auch nicht\r\nŻ"

    def reply(exchange):
        size = exchange.body["prompt"]
        events = [b": keep-alive\n\n", *happy_events(reasoning, "46 €")[:-1]]
        stream = b"".join([*events, done("46 €", seed=int(size))])
        exchange.stream([stream.replace(b"\n", line_end)])

    stub.reply = reply
    tab = context.new_page()
    complaints = listen(tab)
    tab.add_init_script(CUT)
    tab.goto(stub.url)
    wrong = []
    for size in sizes:
        tab.evaluate(f"window.cut = {size}")
        ask(tab, str(size))
        expect(tab.locator("#figures")).to_contain_text(re.compile(rf"Seed\s*{size}$"))
        if (text(tab, "reasoning"), text(tab, "answer")) != (reasoning, "46 €"):
            wrong.append(size)
    assert not wrong and not complaints


# ---- The rest ----


@needs_browser
def test_copy_as_curl_gives_the_same_request(page, stub, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    question = 'What\'s "23" + $15 + `8`?\nSay \\n it in 日本'
    ask(page, question)
    expect(page.locator("#answer")).to_have_text("46")
    button(page, "Copy as curl").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()").replace("\\\n", ""))
    assert words[:3] == ["curl", "-N", stub.url + "phase1/reasoning"]
    sent = json.loads(words[words.index("-d") + 1])
    assert sent == {"prompt": question, "stream": True, "seed": 5}, "the seed that was used"
    assert "-H" not in words
    page.evaluate("sessionStorage.setItem('rlm-api-key', 'my-secret')")
    page.reload()
    ask(page)
    expect(page.locator("#answer")).to_have_text("46")
    button(page, "Copy as curl").click()
    expect(page.locator("#copied")).to_contain_text("Put the API key into KEY")
    command = page.evaluate("navigator.clipboard.readText()")
    assert '-H "Authorization: Bearer $KEY"' in command and "my-secret" not in command


@needs_browser
def test_without_a_clipboard_the_command_is_shown(page, stub):
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    ask(page)
    expect(page.locator("#answer")).to_have_text("46")
    button(page, "Copy as curl").click()
    expect(page.get_by_label("The curl command")).to_have_value(re.compile("^curl -N "))


@needs_browser
def test_a_phone_in_the_dark(browser, stub):
    context = browser.new_context(
        viewport={"width": 320, "height": 640}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    tab = context.new_page()
    tab.goto(stub.url)
    stub.reply = lambda exchange: exchange.stream(happy_events("x" * 500, "9" * 60))
    ask(tab, "8" * 100)
    expect(button(tab, "Ask")).to_be_visible()
    tab.locator("#thought").click()
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert tab.evaluate(wide) == [320, 320], "nothing sticks out"
    red, green, blue = tab.locator("body").evaluate(
        "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert max(red, green, blue) < 60
    tab.get_by_label("Question").press("Enter")  # here a new line
    assert len(stub.asked) == 1
    context.close()


@pytest.fixture(scope="module")
def real_url():
    """The address of serve.py itself, running on the tiny base."""
    command = [sys.executable, str(ROOT / "serve.py"), "--port", "0"]
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("RLM_")}
    environment = quiet | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in server.stdout:
            if found := re.match(r"local: (http://\S+)", line):
                break
        else:
            pytest.fail(f"serve.py ended with {server.wait()} before it was ready")
        yield found[1].rstrip("/") + "/"
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.ci
def test_the_real_server(context, real_url):
    tab = context.new_page()
    complaints = listen(tab)
    reply = tab.goto(real_url)
    assert reply.headers["content-security-policy"] == policy(PAGE.read_text(encoding="utf-8"))
    expect(tab.locator("#model")).to_have_attribute("data-state", "ready")
    tab.get_by_text("Options", exact=True).click()
    tab.get_by_label("Temperature").fill("0")
    ask(tab)
    expect(tab.locator("#answer")).to_have_text("46")
    expect(tab.locator("#thought")).to_have_text(re.compile(r"^Thought for \d+\.\d s, \d+ tokens$"))
    expect(tab.locator("#figures")).to_contain_text(re.compile(r"\d tokens/s"))
    assert "23 + 15 = 38" in text(tab, "reasoning")
    tab.get_by_label("Temperature").fill("")
    tab.get_by_label("Seed").fill("1")
    tab.get_by_text("Options", exact=True).click()
    tab.get_by_label("Samples", exact=True).fill("8")
    ask(tab, "What is the sum of 524, 199, and 295?")
    expect(tab.locator("#figures")).to_contain_text("tokens/s")
    expect(tab.locator("#answer")).to_have_text("1018")
    expect(tab.locator("#votes li.best")).to_have_text(re.compile("^1018.*of 8$"))
    tab.locator("#thought").click()
    assert "524 + 199 = 723" in text(tab, "reasoning")
    assert not complaints
    if target := os.environ.get("PAGE_SCREENSHOT"):
        tab.screenshot(path=target, full_page=True)
