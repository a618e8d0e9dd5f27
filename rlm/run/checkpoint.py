"""Checkpoints: a run's state on the disk, from which it goes on as if it had never stopped.

    runs/<name>/checkpoints/step-000016/state.json, tensors.safetensors

A folder is written under another name, flushed to the disk and renamed: it is there whole or not
at all. A checksum finds what the disk has lost since. What a state means is not known here: it is
nested dictionaries and lists of plain values and tensors.
"""

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rlm import files
from rlm.errors import InputError

logger = logging.getLogger("rlm")

FOLDER, STATE, TENSORS = "checkpoints", "state.json", "tensors.safetensors"
FINISHED = "finished"  # a file beside the checkpoints of a run that has come to its end
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose state.json was read; facts are plain values about the run."""

    path: Path
    step: int
    facts: dict

    @property
    def run(self) -> Path:
        """The folder of the run that it is of."""
        return self.path.parent.parent

    def load(self) -> dict:
        """Return the state that was saved, tensors on the CPU. InputError if it is not whole."""
        saved, raw = _read(self.path)
        from safetensors.torch import load

        return _join(saved["state"], load(raw))


def save(run: Path, step: int, state: dict, facts: dict, *, best: int = 0, texts=None) -> Path:
    """Write the state after `step` steps and return its folder; OSError leaves the older ones.

    Kept beside it: the one before, and that of step `best`. texts: more files, name -> content.
    """
    from safetensors.torch import save as to_bytes

    tensors: dict = {}
    plain = _split(state, "", tensors)
    raw = to_bytes(tensors)
    path = run / FOLDER / f"step-{step:06d}"
    new = files.beside(path, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for name, text in (texts or {}).items():
            files.write_text(new / name, text)
        (new / TENSORS).write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        found = {"step": step, "facts": facts, "sha256": digest, "state": plain}
        files.write_text(new / STATE, json.dumps(found))
        files.put_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    (run / FOLDER / FINISHED).unlink(missing_ok=True)
    _prune(run, keep={step, best})
    return path


def finish(run: Path) -> None:
    """Mark a run as ended: it is not gone on with unless a checkpoint of it is named."""
    if (run / FOLDER).is_dir():
        files.write_text(run / FOLDER / FINISHED, "")


def find(resume: str, run: Path) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, None to begin anew.

    resume: "never", "auto" (the newest whole one of `run`, unless the run has ended), or a path:
    a checkpoint of `run`, or its folder. InputError for a path that has none, or of another run.
    """
    if resume == "never" or (resume == "auto" and (run / FOLDER / FINISHED).exists()):
        return None
    if resume == "auto":
        return newest(run)
    path = Path(resume)
    found = open_checkpoint(path) if (path / STATE).is_file() else newest(path)
    if found is None:
        raise InputError(
            f"--resume {resume}: no checkpoint is there; give a folder like "
            f"{run / FOLDER / 'step-000010'}, or auto, or never"
        )
    if found.run.resolve() != run.resolve():
        raise InputError(
            f"--resume {resume}: a checkpoint of another run than {run}; "
            f"use --run {found.run.name} to go on with that one"
        )
    return found


def newest(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; each that is not is told in a warning."""
    for path in sorted(_folders(run), reverse=True):
        try:
            found = open_checkpoint(path)
            _read(path)
            return found
        except InputError as error:
            logger.warning("%s; going back to the one before", error)
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint of a folder, its tensors not read yet. InputError if it has none."""
    saved = files.read_object(path / STATE)
    try:
        return Checkpoint(path, int(saved["step"]), dict(saved["facts"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path / STATE}: cannot be read as a checkpoint") from None


def check_same(found: Checkpoint, facts: dict, defaults: dict | None = None) -> None:
    """InputError naming what differs between the facts of the checkpoint and those given.

    defaults: see `differences`.
    """
    told = differences({name: found.facts.get(name) for name in facts}, facts, defaults)
    if told:
        raise InputError(
            f"{found.run}: stopped after step {found.step} with other settings ({told}); give the "
            "old ones to go on, or --resume never to begin anew (the old run is kept), or --run "
            "NAME for another folder"
        )


def differences(before: dict, now: dict, defaults: dict | None = None) -> str:
    """Return in words what differs, empty for nothing; dictionaries inside are settings.

    defaults: as `now`; what a setting counts as that `before`, of an older release, did not know.

    >>> differences({"settings": {"seed": 0, "group_size": 8}}, {"settings": {"seed": 1}})
    '--group-size was 8, now None; --seed was 0, now 1'
    """
    changed = []
    for name in now:
        if isinstance(now[name], dict):
            known, new = before.get(name) or {}, now[name]
            old = (defaults or {}).get(name, {}) | known if known else {}
            names = sorted({*known, *new})
            changed += [(f"--{n.replace('_', '-')}", old.get(n), new.get(n)) for n in names]
        else:
            changed.append((name.replace("_", " "), before.get(name), now[name]))
    # As JSON gives them back: a tuple is a list there.
    changed = [each for each in changed if json.dumps(each[1]) != json.dumps(each[2])]
    return "; ".join(f"{name} was {old}, now {new}" for name, old, new in changed)


def _read(path: Path) -> tuple[dict, bytes]:
    """Return (what state.json holds, the bytes of the tensors). InputError if it is not whole."""
    saved = files.read_object(path / STATE)
    try:
        raw = (path / TENSORS).read_bytes()
    except OSError as error:
        raise InputError(f"{path / TENSORS}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(raw).hexdigest() != saved.get("sha256"):
        raise InputError(f"{path / TENSORS}: {len(raw)} bytes that are not those that were written")
    return saved, raw


def _folders(run: Path) -> list[Path]:
    place = run / FOLDER
    found = place.iterdir() if place.is_dir() else []
    return [path for path in found if re.fullmatch(r"step-\d{6,}", path.name)]


def _prune(run: Path, keep: set[int]) -> None:
    """Remove all but the newest checkpoints and those of the steps `keep`, and what a kill left."""
    steps = {int(path.name.removeprefix("step-")): path for path in _folders(run)}
    newest_steps = sorted(steps)[-KEPT:]
    for step, path in steps.items():
        if step not in newest_steps and step not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for left in (run / FOLDER).glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


# A tensor stands in the plain state as {"tensor": its name among the tensors}.


def _split(value, name: str, tensors: dict):
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {str(key): _split(each, f"{name}/{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_split(each, f"{name}/{index}", tensors) for index, each in enumerate(value)]
    return value


def _join(value, tensors: dict):
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _join(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_join(each, tensors) for each in value]
    return value
