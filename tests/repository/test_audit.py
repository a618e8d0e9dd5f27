"""The audit of what is installed: what it lets pass, and that no answer is no pass."""

import http.server
import importlib.util
import json
import subprocess
import threading
from importlib.metadata import distributions
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
SPEC = importlib.util.spec_from_file_location("audit", SCRIPT)
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

PACKAGES = {"torch": "2.13.0", "fastapi": "0.136.3"}
HOLE = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.13.1"]}


def test_clean_packages_pass():
    code, lines = audit.judge(PACKAGES, {"torch": [], "fastapi": []}, {})
    assert code == 0 and lines == ["audit: 2 of 2 packages asked after: 0 open advisories"]


def test_an_advisory_fails_until_it_has_a_reason():
    known = {"torch": [HOLE], "fastapi": []}
    code, lines = audit.judge(PACKAGES, known, {})
    assert code == 1 and lines[0] == "torch 2.13.0: PYSEC-2026-1: fixed in 2.13.1"
    # By its alias too; the reason is shown each time.
    code, lines = audit.judge(PACKAGES, known, {"CVE-2026-1": "no pickle is read"})
    assert code == 0 and lines[0] == "torch 2.13.0: PYSEC-2026-1: excepted: no pickle is read"


def test_an_exception_that_nothing_needs_fails():
    code, lines = audit.judge(PACKAGES, {"torch": [], "fastapi": []}, {"CVE-2020-9": "old"})
    assert code == 1 and "CVE-2020-9: no package has it" in lines[0]


def test_what_could_not_be_asked_is_no_pass():
    code, lines = audit.judge(PACKAGES, {"torch": []}, {"CVE-2020-9": "old"})
    assert code == 3 and lines[0] == "COULD NOT ASK about 1 packages: fastapi"
    assert lines[-1] == "audit: 1 of 2 packages asked after: 0 open advisories"
    # A known hole counts more than what is not known.
    assert audit.judge(PACKAGES, {"torch": [HOLE]}, {})[0] == 1


def test_an_exception_needs_a_reason():
    text = "# comment\n\nCVE-2026-1 no pickle is read # since torch.load is not used\n"
    assert audit.exceptions(text) == {"CVE-2026-1": "no pickle is read"}
    with pytest.raises(ValueError, match="CVE-2026-1: say why"):
        audit.exceptions("CVE-2026-1\n")
    audit.exceptions(audit.EXCEPTIONS.read_text(encoding="utf-8"))  # ours can be read


def test_the_builds_mark_is_no_part_of_a_version():
    assert "+" not in "".join(audit.installed().values())
    assert {"torch", "fastapi", "huggingface-hub"} <= audit.installed().keys()


def test_this_project_is_not_asked_after(tmp_path, monkeypatch):
    # As pip and uv write it of what is installed from a folder; a wheel's address has no dir_info.
    for name, where in (
        ("ours", {"dir_info": {"editable": True}}),
        ("theirs", {"archive_info": {}}),
    ):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "direct_url.json").write_text(json.dumps({"url": "file:///x", **where}))
    monkeypatch.setattr(audit, "distributions", lambda: distributions(path=[str(tmp_path)]))
    assert audit.installed() == {"theirs": "1.0"}


@pytest.fixture
def advisories():
    """The address of a service as OSV has it; torch has a hole there, fastapi has none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ranges = [{"type": "ECOSYSTEM", "events": [{"fixed": "2.13.1"}]}]
            affected = {"package": {"name": "torch", "ecosystem": "PyPI"}, "ranges": ranges}
            hole = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "details": "a hole",
                    "affected": [affected], "published": "2026-01-01T00:00:00Z"}  # fmt: skip
            body = json.dumps({"vulns": [hole]} if asked["package"]["name"] == "torch" else {})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.ci
def test_pip_audit_is_understood(advisories):
    """The whole way through pip-audit: a service that answers, and one that does not."""
    known = audit.ask(["-s", "osv", "--osv-url", f"{advisories}/v1/query"], PACKAGES)
    assert known["fastapi"] == [] and known["torch"][0]["id"] == "PYSEC-2026-1"
    assert audit.judge(PACKAGES, known, {})[0] == 1
    nowhere = ["-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]
    assert audit.ask(nowhere, PACKAGES) == {}
    with pytest.raises(RuntimeError, match="pip-audit does not run: usage"):
        audit.ask(["--no-such-flag"], PACKAGES)


def test_a_package_that_the_service_does_not_know_is_not_clean(monkeypatch):
    # pip-audit exits with 0 and says "No known vulnerabilities found" to this.
    skipped = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
    answer = json.dumps({"dependencies": [skipped, {"name": "fastapi", "vulns": []}]})
    done = subprocess.CompletedProcess([], 0, stdout=answer, stderr="")
    monkeypatch.setattr(audit.subprocess, "run", lambda *words, **options: done)
    assert audit.ask(["-s", "pypi"], PACKAGES) == {"fastapi": []}
