"""The report that renews itself: what is served, to whom, and that nothing half-written is shown.

Runs are made by hand and grow by hand; the browser is the one of tests/report/test_report.py.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial

import pytest

from rlm.errors import InputError
from rlm.report import report, watch
from rlm.run.folder import Run
from tests.report.test_report import browser, made, record  # noqa: F401
from tests.server.test_page import expect, listen, needs_browser
from tests.support.running import ROOT

LOG = "step,reward_mean\n1,0.25\n2,0.5\n"


@contextmanager
def watching(folder, host="127.0.0.1", every=1.0):
    """Serve a folder from a thread; yields the server."""
    with watch.open_server(host, 0, watch.Live(folder, every)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def ask(server, path="/", method="GET", **headers):
    """Return (status, headers, body); `Host` is what a browser on this machine sends."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read().decode()
    connection.close()
    return found


def steps_shown(page: str) -> list[str]:
    return re.findall(r"Figures of (\d+) of \d+ steps", page)


# ---- What is shown ----


def test_the_page_tells_how_far_the_run_is_and_is_not_written(tmp_path):
    run = made(tmp_path / "grpo", [record(1, "a", 1.0)], {"max_steps": 9})
    before = sorted(path.name for path in run.iterdir())
    page = watch.Live(run, 5.0).page()[1].decode()
    assert re.search(r"It runs, or was stopped: step 2 of 9, logged \d{4}-\d\d-\d\d \d\d:", page)
    assert "it ended at step" not in page and "Question a" in page
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_run_that_has_no_step_yet_is_shown(tmp_path):
    page = watch.Live(tmp_path, 5.0).page()[1].decode()
    assert "It runs: no step has been logged yet." in page and "no step was logged" not in page


def test_of_a_run_of_both_stages_the_last_one_runs(tmp_path):
    made(tmp_path / "sft", settings={"max_steps": 5}, log=LOG)
    made(tmp_path / "grpo", settings={"max_steps": 4}, log=LOG)
    page = report.render(tmp_path, running=True)
    assert "It runs, or was stopped: grpo: step 2 of 4" in page
    assert "sft: it ended at step 2 of 5" in page and "grpo: it ended" not in page


def test_a_line_that_is_half_written_is_not_shown(tmp_path):
    run = made(tmp_path, log=LOG + "3,0.7")  # of 0.75
    live = watch.Live(run, 5.0)
    assert steps_shown(live.page()[1].decode()) == ["2"]
    (run / "log.csv").write_text(LOG + "3,0.75\n")
    live._next = 0.0  # as if some time had passed
    page = live.page()[1].decode()
    assert steps_shown(page) == ["3"] and "0.75" in page


def test_samples_of_a_step_are_shown_when_all_of_them_are_there(tmp_path):
    run = made(tmp_path, [record(1, "a", 1.0), record(1, "a", 0.0)])
    live = watch.Live(run, 5.0)
    live.page()
    stopped = threading.Event()

    def write():  # a line at a time, as a slow disk would
        with open(run / "rollouts.jsonl", "a") as file:
            while not stopped.wait(0.02):
                print(json.dumps(record(2, "a", 1.0)), file=file, flush=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.1)
        live._next = 0.0
        during = live.page()[1].decode()
    finally:
        stopped.set()
        writer.join()
    assert '"total":2' in during, "the second step is still being written"
    written = len((run / "rollouts.jsonl").read_text().splitlines())
    live._next = 0.0
    assert written > 4 and f'"total":{written}' in live.page()[1].decode()


def test_a_page_that_is_costly_is_made_less_often(tmp_path, monkeypatch):
    rendered = []

    def slow(*arguments, **options):
        rendered.append(time.sleep(0.1))
        return "page"

    monkeypatch.setattr(report, "render", slow)
    live = watch.Live(made(tmp_path), 1.0)
    for count in range(5):
        (tmp_path / "log.csv").write_text(LOG + "3,1\n" * count)
        live.page()
    assert len(rendered) == 1, "it took 0.1 s: for 2 s there is no other"


# ---- To whom ----


def test_only_what_has_changed_is_sent_again(tmp_path):
    run = made(tmp_path)
    with watching(run) as server:
        status, headers, page = ask(server)
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert f'data-tag="{headers["ETag"]}"' in page and "connect-src 'self'" in page
        assert ask(server, **{"If-None-Match": headers["ETag"]})[::2] == (304, "")
        (run / "log.csv").write_text(LOG + "3,0.75\n")
        server.live._next = 0.0
        status, renewed, page = ask(server, **{"If-None-Match": headers["ETag"]})
        assert status == 200 and renewed["ETag"] != headers["ETag"]
        status, headers, body = ask(server, method="HEAD")
        assert status == 200 and int(headers["Content-Length"]) > 1000 and body == ""


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:6007", 200), ("localhost", 200), ("[::1]:6007", 200), ("evil.example:6007", 403),
     ("127.0.0.1.evil.example", 403), ("", 403), ("[", 403)],
)  # fmt: skip
def test_a_page_of_the_web_cannot_ask_by_a_name_of_its_own(tmp_path, host, status):
    with watching(made(tmp_path)) as server:
        assert ask(server, Host=host)[0] == status


def test_other_paths_and_methods_have_nothing(tmp_path):
    with watching(made(tmp_path)) as server:
        assert ask(server, "/settings.json")[0] == 404
        assert ask(server, "/..%2fx")[0] == 404
        assert ask(server, method="POST")[0] == 501


def test_on_the_network_the_address_holds_a_secret(tmp_path):
    with watching(made(tmp_path), host="0.0.0.0") as server:
        [line] = watch.told(server)
        found = re.fullmatch(r"report: http://.+:(\d+)/([\w-]{20,})", line)
        assert found and int(found[1]) == server.server_port
        assert ask(server)[0] == 404
        assert ask(server, f"/{found[2]}x")[0] == 404
        assert ask(server, f"/{found[2]}", Host="gpu-1:6007")[0] == 200


def test_the_line_for_ssh_names_the_machine_as_the_user_came_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "mel")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-1")
    with watching(made(tmp_path)) as server:
        port = server.server_port
        lines = watch.told(server)
        assert lines[0] == f"report: http://127.0.0.1:{port}"
        assert lines[1] == f"from another machine: ssh -L {port}:127.0.0.1:{port} mel@gpu-1"
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50022 10.0.0.2 22")
    assert watch.remote() == "mel@10.0.0.2"
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50022 10.0.0.2 2222")
    assert watch.remote() == "mel@10.0.0.2 -p 2222"


def test_a_port_that_is_taken(tmp_path):
    live = watch.Live(made(tmp_path), 5.0)
    with watching(tmp_path) as server:
        with pytest.raises(InputError, match=r"--port \d+: cannot listen there .*use another"):
            watch.open_server("127.0.0.1", server.server_port, live)
        taken = server.server_port
        watch_port, watch.PORT = watch.PORT, taken
        try:
            with watch.open_server("127.0.0.1", None, live) as other:
                assert other.server_port != taken, "without --port a free one is taken"
        finally:
            watch.PORT = watch_port


@pytest.mark.parametrize(
    ("words", "told"),
    [(["runs/nowhere"], "runs/nowhere: no such folder"), ([".", "--every", "0"], "use 1 to 3600"),
     ([".", "--every", "nan"], "use 1 to 3600"), ([".", "--port", "70000"], "use 0 to 65535"),
     ([], "required: folder")],
)  # fmt: skip
def test_wrong_input_is_refused(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told):
        report.main(["watch", *words])


# ---- As a user runs it ----

TRAINING = """
import sys
from rlm.run.folder import Run
run = Run("runs/x", {"run": "x", "max_steps": 3}, report_every=2)
for step in (1, 2, 3):
    sys.stdin.readline()
    run.log({"step": step, "reward_mean": step / 10})
    run.write_rollouts([])
    print(step, flush=True)
"""


def test_it_serves_a_run_of_another_process_until_ctrl_c(tmp_path):
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    common = {"cwd": tmp_path, "env": variables}
    training = subprocess.Popen([sys.executable, "-c", TRAINING], **common, **pipes)

    def step():
        training.stdin.write("\n")
        return training.stdout.readline()

    step()
    words = [sys.executable, "-m", "rlm.report", "watch", "runs/x", "--port", "0", "--every", "1"]
    # A shell's job in the background ignores the signal, and so would what it starts.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=heard, **common)
    try:
        url = server.stdout.readline().split()[-1]
        assert " ssh -L " in server.stdout.readline()

        def page() -> str:
            with urllib.request.urlopen(url, timeout=20) as reply:
                return reply.read().decode()

        assert "step 1 of 3" in page()
        step()
        until = time.monotonic() + 20
        while "step 2 of 3" not in page():
            assert time.monotonic() < until, "the second step never came"
            time.sleep(0.05)
        kept = (tmp_path / "runs" / "x" / "report.html").read_text()
        assert "step 2 of 3" in kept and "it ended" not in kept, "--report-every 2"
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
    finally:
        for process in (training, server):
            process.kill()
            process.communicate()


def test_a_run_writes_reports_between_only_where_it_is_told_to(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(report, "write", lambda path, running: written.append(running))
    for every, expected in ((0, [False]), (2, [True, True, False])):
        written.clear()
        run = Run(tmp_path / f"every-{every}", {}, report_every=every)
        for step in range(1, 6):
            run.log({"step": step, "loss": 0.5}, show=False)
        run.close()
        assert written == expected


# ---- In a browser ----


@needs_browser
def test_the_page_renews_itself_and_keeps_what_was_chosen(tmp_path, browser):  # noqa: F811
    run = made(tmp_path / "grpo", settings={"max_steps": 9})
    context = browser.new_context()
    tab = context.new_page()
    complaints = listen(tab)
    with watching(run) as server:
        tab.goto(f"http://127.0.0.1:{server.server_port}")
        expect(tab.locator("#browser")).to_be_hidden()  # no samples yet
        first = [record(1, "c", 1.0), record(1, "b", 1.0), record(2, "b", 0.0)]
        made(run, first, {"max_steps": 9})
        expect(tab.locator("#browser")).to_be_visible()
        tab.get_by_role("button", name="step 2: 0").click()
        expect(tab.locator("#asked")).to_have_text("Question b")
        tab.locator("#figures details summary").first.click()
        tab.locator(".text").evaluate("e => { e.dataset.seen = 'yes'; }")
        log = "step,reward_mean\n1,0.25\n2,0.5\n3,0.75\n"
        more = [record(step, "c", 1.0) for step in (2, 3)]
        made(run, [*first, *more], {"max_steps": 9}, log=log)
        expect(tab.locator("#figures")).to_contain_text("step 3 of 9")
        # Question c has more steps now and stands first; b is still the one that is shown.
        expect(tab.locator("#asked")).to_have_text("Question b")
        expect(tab.locator("#question")).to_have_value("1")
        expect(tab.get_by_role("button", name="step 2: 0")).to_have_attribute(
            "aria-pressed", "true"
        )
        assert tab.locator(".text").get_attribute("data-seen") == "yes", "it was not drawn anew"
        assert tab.locator("#figures details").first.get_attribute("open") is not None
        expect(tab.locator("#lost")).to_be_hidden()
    expect(tab.locator("#lost")).to_be_visible()
    assert not complaints
    context.close()
