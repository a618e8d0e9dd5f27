"""The report of a run: what it holds, that it is harmless, and how it works in a real browser.

The browser is the one of tests/server/test_page.py. Runs are made by hand; those of the scripts are
in tests/run/test_trackers.py.
"""

import json
import re
import subprocess
import sys

import pytest

from rlm.errors import InputError
from rlm.evaluation.sharpening import Sampled, pass_at_k_metrics
from rlm.report import report
from tests.server.test_page import CHROMIUM, expect, listen, needs_browser, playwright
from tests.support.running import ROOT, start

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp;"
SUMMARY = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "questions": 100,
           "accuracy_lenient": 0.654,
           "format_rate": 0.9, "mean_tokens": 12.5}  # fmt: skip


def record(step, id, reward, text="<think>\n6\n</think>\n6", **more):
    return {"step": step, "id": id, "question": f"Question {id}", "gold": "6", "text": text,
            "tokens": 5, "finish": "stop", "reward": reward, "parts": {"correctness": reward},
            "reason": None, "advantage": reward - 0.5, **more}  # fmt: skip


def made(folder, records=(), settings=None, log="step,reward_mean\n1,0.25\n2,0.5\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"run": "demo", **(settings or {})}))
    (folder / "log.csv").write_text(log)
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a report from its file; fails at the end if the browser complained about it."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    tab = context.new_page()
    complaints, asked = listen(tab), []
    tab.on("request", lambda request: asked.append(request.url))

    def go(folder):
        tab.goto(report.write(folder).as_uri())
        return tab

    yield go
    context.close()
    assert not complaints
    assert all(url.startswith(("file:", "data:")) for url in asked)


# ---- Without a browser ----


def test_the_page_loads_nothing_and_allows_only_its_own_script(tmp_path):
    page = report.write(made(tmp_path, [record(1, "a", 1.0)])).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page and "unsafe-inline" not in page and " style=" not in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def test_what_became_of_pass_at_k_is_in_it(tmp_path):
    run = made(tmp_path)
    assert "only sharpened" not in report.render(run)
    # 2 of 8 are right in 10 of 20 questions; then all 8 are.
    models = [Sampled("<b>", [2] * 10 + [0] * 10, 8), Sampled("end", [8] * 10 + [0] * 10, 8)]
    found = json.dumps({"pass_at_k": pass_at_k_metrics(models)})
    (run / "pass_at_k.json").write_text(found)
    page = report.render(run)
    assert "<h2>Learned, or only sharpened</h2>" in page and "<b>" not in page
    cells = re.findall(r"<td>(pass@\d+)</td><td class=\"n\">(.*?)</td>", page)
    # Wilson's intervals of 2.5 of 20 and of 10 of 20.
    assert cells == [("pass@1", "12.5 [4.0, 33.1]"), ("pass@8", "50.0 [29.9, 70.1]")]
    assert "&lt;b&gt; → end: pass@1 rose, pass@8 stayed within noise: sharpening" in page
    assert "Per cent of 20 questions" in page


def test_all_that_was_measured_is_in_it(tmp_path):
    log = "step,reward_mean,live_fraction,validation_accuracy,completion_tokens,kl,entropy,"
    log += "tokens_per_second,generate_seconds,learn_seconds\n1,0.5,0.5,0.25,12,0.1,0.2,99,3,1\n"
    run = made(tmp_path / "demo" / "grpo", settings={"max_steps": 4, "eval_samples": 8}, log=log)
    (run / "console.log").write_text("step 1\nwarning: mind the gap\n")
    for name in ("base", "sft"):
        (run.parent / f"test-{name}.json").write_text(json.dumps({**SUMMARY, "model": name}))
    page = report.write(run).read_text(encoding="utf-8")
    titles = ("Reward", "Validation", "Groups", "Length, tokens", "KL to the start, nats",
              "Entropy, nats", "Tokens per second")  # fmt: skip
    for title in titles:
        assert f"<figcaption>{title}<" in page
    assert '<path class="interval c0"' in page, "accuracy has its interval"
    assert ">by the last number</th>" in page and "65.4 %" in page
    for told in ("mind the gap", "it ended at step 1 of 4", "75.0 %", "40.0 % to 60.0 %"):
        assert told in page
    assert re.search(r'scope="row">base<.*scope="row">sft<', page, re.DOTALL)
    assert re.search(r"max_steps</th>\s*<td class=\"wrap\">4<", page)
    assert {p.name for p in run.iterdir()} >= {"report.html"}


def test_the_report_of_both_stages_also_renews_theirs(tmp_path):
    for name in ("sft", "grpo"):
        made(tmp_path / name, [record(1, name, 1.0)], {"run": f"demo/{name}"})
    (tmp_path / "summary.json").write_text(json.dumps([{**SUMMARY, "model": "grpo"}]))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert page.index("Training: sft") < page.index("Training: grpo")
    assert "Settings of sft" in page and "Question grpo" in page and "Question sft" not in page
    assert 'scope="row">grpo<' in (tmp_path / "sft" / "report.html").read_text(encoding="utf-8")


def test_a_folder_with_nothing_still_makes_a_page(tmp_path):
    assert "Run " in report.write(tmp_path).read_text(encoding="utf-8")


def test_the_command_line(tmp_path, capsys):
    run = made(tmp_path / "grpo")
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert report.main([]) == 2 and report.main(["--help"]) == 0
    with pytest.raises(InputError, match="no such folder; give a run's, such as runs/grpo"):
        report.main([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no log\.csv and no evaluation"):
        report.main([str(tmp_path / "empty")])


INTERRUPTED = """
from rlm.run.folder import Run
run = Run("runs/x", {"run": "x", "max_steps": 9})
run.log({"step": 1, "reward_mean": 0.5})
raise KeyboardInterrupt
"""


def test_an_interrupted_run_has_its_report(tmp_path):
    words = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr and done.returncode != 0
    page = (tmp_path / "runs" / "x" / "report.html").read_text(encoding="utf-8")
    assert "it ended at step 1 of 9" in page


# ---- The rollouts, in a browser ----


@needs_browser
def test_a_question_across_the_steps_with_the_reason_of_each_verdict(tmp_path, opened):
    records = [
        record(1, "a", 0.0, "<think>\n5", reason="no_close", finish="length"),
        record(1, "a", 0.0, "<think>\n</think>\n7"),
        record(1, "b", 1.0),
        record(5, "a", 1.0, parts={"correctness": 1.0, "integer": 0.5}),
        record(5, "a", 1.0),
    ]
    tab = opened(made(tmp_path, records))
    assert tab.locator("#sampled").inner_text() == "All 5 completions."
    options = tab.locator("#question option").all_inner_texts()
    assert options == ["2 steps · Question a", "step 1 · Question b"]
    assert tab.locator("#steps button").all_inner_texts() == ["step 1: 0", "step 5: 1"]
    heads = tab.locator(".head").all_inner_texts()
    assert "unreadable: the reasoning was never closed" in heads[0] and "cut off" in heads[0]
    assert "wrong: not the known answer" in heads[1] and "advantage −0.5" in heads[1]
    assert "Known answer 6. Step 1: 2 completions, 0 right" in tab.locator("#group").inner_text()
    tab.get_by_role("button", name="step 5: 1").click()
    heads = tab.locator(".head").all_inner_texts()
    assert "right: the known answer" in heads[0] and "correctness 1, integer 0.5" in heads[0]
    expect(tab.get_by_role("button", name="step 5: 1")).to_have_attribute("aria-pressed", "true")
    tab.get_by_role("button", name="Next").click()
    expect(tab.locator("#asked")).to_have_text("Question b")
    expect(tab.get_by_role("button", name="Next")).to_be_disabled()


@needs_browser
def test_tokens_are_coloured_by_log_probability_and_by_advantage(tmp_path, opened):
    # e to these: 0.99, 0.82, 0.37, 0.05, 0.002. A bridge of one character, two in JavaScript.
    coloured = {"text": "<t>ab🌉cde", "token_lengths": [1, 1, 1, 2, 1, 0],
                "logprobs": [-0.01, -0.2, -1, -3, -6, 0]}  # fmt: skip
    records = [record(1, "a", 1.0, **coloured), record(1, "a", 0.0), record(1, "a", 0.5)]
    tab = opened(made(tmp_path, records))
    found = tab.locator(".text").first.locator("span")
    seen = found.evaluate_all("spans => spans.map(s => [s.textContent, s.className, s.title])")
    assert [each[:2] for each in seen] == [
        ["<t>", ""],  # the prefill, which was not sampled
        ["a", ""],
        ["b", "p1"],
        ["🌉", "p2"],
        ["cd", "p3"],
        ["e", "p4"],
    ]
    assert seen[0][2] == "" and seen[2][2] == "82 %, log-probability −0.2"
    assert tab.locator(".text").first.inner_text() == "<t>ab🌉cde"
    rare = tab.locator("#completions li").first.locator("p").inner_text()
    assert rare == 'least likely tokens: "e" 0.25 %, "cd" 5 %, "🌉" 37 %'
    assert tab.locator(".text").nth(1).locator("span").count() == 0, "nothing is known of it"
    tab.get_by_label("advantage").check()
    classes = tab.locator(".text").evaluate_all("a => a.map(e => e.firstElementChild?.className)")
    assert classes == ["u2", "d2", None]
    tab.get_by_label("nothing").check()
    assert tab.locator(".text span").count() == 0


@needs_browser
def test_nothing_that_a_model_wrote_is_markup(tmp_path, opened):
    agents = [{"id": HOSTILE, "prompt": HOSTILE, "output": HOSTILE, "reads": [HOSTILE]}]
    hostile = record(1, HOSTILE, 1.0, HOSTILE, question=HOSTILE, gold=HOSTILE, reason=HOSTILE,
                     parts={HOSTILE: 1, "b": 2}, agents=agents, graph=HOSTILE)  # fmt: skip
    log = f'step,"reward_$a{HOSTILE}",reward_mean\n1,1,2\n'
    run = made(tmp_path / "grpo", [hostile], {"run": HOSTILE, "model": HOSTILE}, log)
    (run / "console.log").write_text(f"warning: {HOSTILE}\n")
    (run / "test.json").write_text(json.dumps({**SUMMARY, "model": HOSTILE}))
    tab = opened(run)
    expect(tab.locator("#asked")).to_have_text(HOSTILE)
    assert tab.locator(".text").text_content() == HOSTILE
    assert tab.locator("h1").text_content() == f"Run {HOSTILE}"
    assert tab.evaluate("window.hacked") is None and tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2


@needs_browser
def test_a_graph_of_agents_is_drawn_by_level(tmp_path, opened):
    agents = [
        {"id": "planner", "prompt": "plan it", "output": "two steps", "reads": []},
        {"id": "solver", "prompt": "solve it", "output": "6", "reads": ["planner"]},
        {"id": "checker", "prompt": "check it", "output": "yes", "reads": ["planner", "solver"]},
        {"id": "lost", "prompt": "?", "output": "", "reads": ["nobody"]},
    ]
    circle = [{"id": "a", "reads": ["b"]}, {"id": "b", "reads": ["a"]}]
    records = [record(1, "a", 1.0, agents=agents, graph="pair"), record(1, "a", 0.0, agents=circle)]
    tab = opened(made(tmp_path, records))
    drawn = tab.locator(".agents").first
    boxes = drawn.locator("rect").evaluate_all("a => a.map(e => e.getAttribute('x') / 170 | 0)")
    assert boxes == [0, 1, 2, 0], "each stands right of all that it reads"
    assert drawn.locator(".edge").count() == 3
    expect(drawn.locator("h3")).to_have_text("Agents: pair")
    drawn.locator("summary").nth(2).click()
    assert drawn.locator("details").nth(2).locator("dd").all_inner_texts() == ["check it", "yes"]
    assert tab.locator(".agents").nth(1).locator("rect").count() == 2, "a circle ends too"


@needs_browser
@pytest.mark.parametrize("by", ["log-probability", "advantage"])
def test_calls_of_tools_are_marked_and_listed(tmp_path, opened, by):
    text = "a<c>1/0</c><result>error: <b></result>b"
    written, end = text.index("<result>"), len(text) - 1
    call = {"name": "calculator", "arguments": "1/0", "result": "error: <b>", "failure": "error",
            "first": 2, "tokens": 3, "start": 1, "written": written, "end": end}  # fmt: skip
    lengths = [1, written - 1, 0, 0, end - written, 1]
    tokens = {"token_lengths": lengths, "logprobs": [-0.2, -0.2, 0, 0, 0, -0.2]}
    tab = opened(made(tmp_path, [record(1, "a", 1.0, text, calls=[call], **tokens)]))
    tab.get_by_label(by).check()
    shown = tab.locator(".text")
    assert shown.text_content() == text
    assert shown.locator(".call").text_content() == "<c>1/0</c>"
    style = "p1" if by == "log-probability" else "u2"
    assert style in shown.locator(".call").get_attribute("class")
    assert shown.locator(".result").text_content() == "<result>error: <b></result>"
    assert shown.locator(".result").get_attribute("class") == "result"
    tab.locator(".calls summary").click()
    expect(tab.locator(".calls summary")).to_have_text("1 call of tools, 1 failed")
    expect(tab.locator(".calls li")).to_have_text("calculator 1/0 → error: <b> (an error)")


@needs_browser
def test_it_works_by_the_keyboard(tmp_path, opened):
    tab = opened(made(tmp_path, [record(s, i, 1.0) for s in (1, 2) for i in ("a", "b")]))
    tab.locator("#question").focus()
    tab.keyboard.press("ArrowDown")
    expect(tab.locator("#asked")).to_have_text("Question b")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # Previous; Next is off at the last
    expect(tab.locator("#asked")).to_have_text("Question a")
    tab.locator("#steps button").nth(1).focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.textContent") == "step 2: 1"
    tab.get_by_label("log-probability").focus()
    tab.keyboard.press("ArrowDown")
    expect(tab.get_by_label("advantage")).to_be_checked()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(tmp_path, opened, scheme):
    marks = {"text": "abcde", "token_lengths": [1] * 5, "logprobs": [-0.01, -0.2, -1, -3, -6]}
    tab = opened(made(tmp_path, [record(1, "a", 1.0, **marks)], {"max_steps": 3}))
    tab.emulate_media(color_scheme=scheme)
    ratios = tab.evaluate("""() => {
      const light = (c) => c.slice(0, 3).map((x) => x / 255)
        .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const behind = (e) => {
        for (; e; e = e.parentElement) {
          const c = parse(getComputedStyle(e).backgroundColor);
          if (c.length < 4 || c[3] > 0) return c;
        }
        return [255, 255, 255];
      };
      const all = "p, b, th, td, li, label, .text span, #legend span, text, h1, h2";
      return [...document.querySelectorAll(all)]
        .filter((e) => e.textContent.trim() && e.checkVisibility())
        .map((e) => {
          const style = getComputedStyle(e), svg = e instanceof SVGElement;
          const [a, b] = [light(parse(svg ? style.fill : style.color)), light(behind(e))];
          const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          return [ratio, `${e.className} ${e.textContent}`];
        });
    }""")
    assert len(ratios) > 30
    assert min(ratios)[0] >= 4.5, min(ratios)


@needs_browser
@pytest.mark.slow
@pytest.mark.ci
def test_fifty_thousand_rollouts_stay_usable(tmp_path, opened):
    folder = made(tmp_path, log="step,reward_mean\n1,0\n400,1\n")
    tokens = {"text": "12 + " * 60, "token_lengths": [2, 3] * 60, "logprobs": [-0.01, -1.2] * 60}
    line = json.dumps(record("STEP", "ID", 1.0, **tokens))
    with open(folder / "rollouts.jsonl", "w") as file:
        for group in range(6250):
            step, id = 1 + group // 16, f"q{group % 1999}"
            made_now = line.replace('"STEP"', str(step)).replace("ID", id)
            file.write(f"{made_now}\n" * 8)
    tab = opened(folder)
    size = (folder / "report.html").stat().st_size
    assert 1e6 < size < 4e6
    opening = "performance.timing.loadEventEnd - performance.timing.navigationStart"
    assert tab.evaluate(opening) < 20_000, "milliseconds; half a second on an idle machine"
    assert re.match(r"A sample: [\d,]+ of 50,000 completions", tab.locator("#sampled").inner_text())
    assert tab.locator("#completions li").count() == 8
    steps = tab.evaluate("new Set(data.questions.flatMap(q => q.steps.map(s => s.step))).size")
    assert steps > 100, "of 391: from all over the run"
    assert tab.evaluate("data.questions[0].steps.length") == 4, "first what came at most steps"


@pytest.mark.slow
def test_a_tiny_run_of_the_script_has_a_report(tmp_path):
    words = ["--num-samples", 8, "--eval-samples", 2, "--max-tokens", 24, "--max-steps", 1]
    more = ["--questions-per-step", 2, "--group-size", 2, "--probe", 0, "--adapter", "none"]
    base = ["--model", ROOT / "weights" / "tiny_base", "--learning-rate", 0.01]
    start("train_grpo.py", *words, *more, *base, cwd=tmp_path)
    page = (tmp_path / "runs" / "grpo" / "report.html").read_text(encoding="utf-8")
    assert "<figcaption>Validation<" in page and '"token_lengths":[' in page
