"""Scripts that are forked from a process with torch in it: they are processes as others are."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import forking
from tests.support.running import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci,
    pytest.mark.skipif(not forking.POSSIBLE, reason="Linux only"),
]

SCRIPT = """
import json, os, sys
told = {"words": sys.argv, "folder": os.getcwd(), "path": sys.path[0], "name": __name__,
        "variables": dict(os.environ), "said": sys.stdin.read(), "pid": os.getpid(),
        "torch": "torch" in sys.modules, "rlm": "rlm" in sys.modules}
print(json.dumps(told))
print("wrong", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "scripts").mkdir()
    path = tmp_path / "scripts" / "script.py"
    path.write_text(SCRIPT)
    return path


def test_it_has_words_variables_folder_pipes_and_exit_code_of_its_own(script, tmp_path):
    place = {"cwd": tmp_path, "env": {"A": "b"}, "stdin": "line\n", "timeout": 60}
    one, other = (forking.run([script, "--x", 1], **place) for _ in range(2))
    assert (one.returncode, one.stderr) == (7, "wrong\n")
    told, again = json.loads(one.stdout), json.loads(other.stdout)
    assert told.pop("pid") != again.pop("pid") and told == again
    assert told["words"] == [str(script), "--x", "1"] and told["name"] == "__main__"
    assert told["folder"] == str(tmp_path) and told["path"] == str(script.parent)
    assert told["variables"] == {"A": "b"} and told["said"] == "line\n"
    assert told["torch"] and not told["rlm"], "the libraries are shared, our own code is not"


def test_an_error_ends_as_in_any_process(tmp_path):
    (tmp_path / "bad.py").write_text("import atexit\natexit.register(print, 'end')\n1 / 0\n")
    done = forking.run([tmp_path / "bad.py"], cwd=tmp_path, env={}, timeout=60)
    assert done.returncode == 1 and done.stdout == "end\n"
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


WAITING = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_reach_it(tmp_path, number):
    (tmp_path / "waiting.py").write_text(WAITING)
    process = forking.popen([tmp_path / "waiting.py"], cwd=tmp_path, env={}, merged=True)
    assert process.stdout.readline() == "ready\n" and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.send_signal(number)
    assert process.wait(30) == process.poll() == -number
    assert ("KeyboardInterrupt" in process.stdout.read()) == (number == signal.SIGINT)
    process.kill()  # once more does nothing


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "from tests.support import forking; "
        f"forking.run([{str(tmp_path / 'who.py')!r}], cwd='.', env={{}}, timeout=60)"
    )
    (tmp_path / "who.py").write_text(
        f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getsid(0)))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    server = int((tmp_path / "pid").read_text())  # it leads its session
    for _ in range(300):
        if not os.path.exists(f"/proc/{server}"):
            return
        time.sleep(0.1)
    pytest.fail("it is still there")
