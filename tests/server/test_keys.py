"""The API key: its sources in order, how it is stored, what is refused, how it is compared."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from rlm.errors import InputError
from rlm.server.keys import find_or_make_key, matches

GIVEN = "a-key-of-22-characters"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("RLM_API_KEY", raising=False)


def key_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_no_key_where_none_is_given_or_needed(tmp_path):
    assert find_or_make_key(None, needed=False, default_path=tmp_path / "key") is None
    assert not list(tmp_path.iterdir())


def test_the_variable_comes_before_the_file(tmp_path, monkeypatch):
    file = key_file(tmp_path / "key", "another-key-of-27-characters")
    monkeypatch.setenv("RLM_API_KEY", GIVEN)
    key = find_or_make_key(file, needed=False, default_path=tmp_path / "other")
    assert key.digest == hashlib.sha256(GIVEN.encode()).digest()
    assert key.fresh is None and key.place == "RLM_API_KEY"


def test_a_file_is_read_without_its_line_end(tmp_path):
    file = key_file(tmp_path / "key", GIVEN + "\n")
    key = find_or_make_key(file, needed=False, default_path=tmp_path / "other")
    assert matches(key, GIVEN) and key.fresh is None and key.place == file
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("named", [True, False])
def test_a_needed_key_is_made_once_and_only_its_owner_reads_it(tmp_path, named):
    path = tmp_path / "runs" / "key"
    place = dict(key_file=str(path)) if named else dict(key_file=None)
    first = find_or_make_key(**place, needed=True, default_path=path)
    assert len(first.fresh) == 43 and matches(first, first.fresh)
    assert path.read_text() == first.fresh + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key"], "no temporary file is left"
    second = find_or_make_key(**place, needed=True, default_path=path)
    assert second.digest == first.digest and second.fresh is None


def test_a_named_file_that_is_not_there_is_never_a_server_without_a_key(tmp_path):
    path = tmp_path / "key"
    key = find_or_make_key(str(path), needed=False, default_path=tmp_path / "other")
    assert matches(key, path.read_text().strip())


def test_two_made_keys_differ(tmp_path):
    keys = [find_or_make_key(None, needed=True, default_path=tmp_path / name) for name in "ab"]
    assert keys[0].digest != keys[1].digest


def test_only_the_key_matches(tmp_path):
    key = find_or_make_key(None, needed=True, default_path=tmp_path / "key")
    wrong = [key.fresh[:-1], key.fresh + "x", key.fresh.swapcase(), " " + key.fresh, "", "\ud800"]
    assert [matches(key, given) for given in wrong] == [False] * len(wrong)


def test_the_key_is_not_in_what_a_log_would_print(tmp_path):
    key = find_or_make_key(None, needed=True, default_path=tmp_path / "key")
    assert key.fresh not in repr(key) and repr(key.digest) not in repr(key)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("x" * 15, "15 characters"),
        ("a key with 25 characters.", "spaces"),
        (GIVEN + "é", "ASCII"),
    ],
)
def test_what_is_no_key_is_refused_from_the_variable(tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("RLM_API_KEY", text)
    with pytest.raises(InputError, match=said) as told:
        find_or_make_key(None, needed=True, default_path=tmp_path / "key")
    assert "RLM_API_KEY" in str(told.value)
    assert not text.strip() or text.strip() not in str(told.value), "never the key itself"


@pytest.mark.parametrize("text, said", [("", "empty"), ("x" * 15, "15"), ("é" * 20, "not text")])
def test_what_is_no_key_is_refused_from_a_file(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        find_or_make_key(key_file(tmp_path / "key", text), needed=True, default_path=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permission bits")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    file = key_file(tmp_path / "key", GIVEN, mode)
    with pytest.raises(InputError, match=f"chmod 600 {file}"):
        find_or_make_key(file, needed=False, default_path=tmp_path / "other")


def test_a_folder_is_refused_and_so_is_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        find_or_make_key(str(tmp_path), needed=False, default_path=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be (read|stored)"):
        find_or_make_key(str(tmp_path / "file" / "key"), needed=True, default_path=tmp_path)
