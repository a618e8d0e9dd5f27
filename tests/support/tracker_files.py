"""Reads back what trackers wrote: {(column, step): value} of each, by the trackers' own formats."""

import csv
import json
import math
import sqlite3
import struct
import time
from pathlib import Path

Metrics = dict[tuple[str, int], float]


def log_figures(run: Path) -> Metrics:
    """Return the numbers of log.csv and times.csv, but what is not finite."""
    found: Metrics = {}
    for name in ("log.csv", "times.csv"):
        if not (run / name).exists():
            continue
        with open(run / name, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                numbers = {column: float(text) for column, text in row.items() if text}
                found |= {(c, step): v for c, v in numbers.items() if math.isfinite(v)}
    return found


def tensorboard_figures(run: Path) -> Metrics:
    """Return the scalars of TensorBoard's event files; they are float32."""
    events = _accumulator(run)
    return {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }


def tensorboard_texts(run: Path) -> str:
    """Return all texts of TensorBoard's event files, one after the other."""
    events = _accumulator(run)
    tensors = [event for tag in events.Tags()["tensors"] for event in events.Tensors(tag)]
    return "\n".join(t.decode() for e in tensors for t in e.tensor_proto.string_val)


def _accumulator(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()


def trackio_rows(run: Path) -> list[tuple[int, dict]]:
    """Return (step, what was logged) of every entry of trackio's database, in order."""
    (path,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    database.close()
    return [(step, json.loads(metrics)) for step, metrics in rows]


def trackio_figures(run: Path) -> Metrics:
    """Return the numbers of trackio's database."""
    return {
        (name, step): value
        for step, row in trackio_rows(run)
        for name, value in row.items()
        if isinstance(value, int | float)
    }


def trackio_settings(run: Path) -> dict:
    """Return the settings in trackio's database."""
    (path,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        ((config,),) = database.execute("select config from configs").fetchall()
    database.close()
    return json.loads(config)


def wandb_records(run: Path, seconds: float = 60) -> list:
    """Return the records of the run's offline .wandb file, once it has the last one.

    W&B's own process writes it, and may do so after the run has finished.
    A header of 7 bytes, then LevelDB's log format: blocks of 32 KiB, in them pieces with a
    checksum (4 bytes), a length (2) and a kind (1): 1 whole, 2 first, 3 middle, 4 last.
    """
    end = time.monotonic() + seconds
    while True:
        found = _wandb_records(run)
        if any(r.WhichOneof("record_type") == "exit" for r in found) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _wandb_records(run: Path) -> list:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            break  # not written yet
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(whole))
            whole = b""
    return found


def wandb_figures(run: Path) -> Metrics:
    """Return the numbers of W&B's history."""
    found: Metrics = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") != "history":
            continue
        items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        numbers = {name: json.loads(text) for name, text in items.items()}
        step = numbers.get("_step", record.history.step.num)
        found |= {
            (name, step): value
            for name, value in numbers.items()
            if not name.startswith("_") and isinstance(value, int | float)
        }
    return found


def wandb_settings(run: Path) -> dict:
    """Return the settings that W&B was given."""
    found = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") == "config":
            updates = record.config.update
            found |= {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}
    return found


def wandb_tables(run: Path) -> list[dict]:
    """Return the tables, each {"columns", "data"}."""
    paths = sorted(run.glob("wandb/offline-run-*/files/media/table/**/*.table.json"))
    return [json.loads(path.read_text()) for path in paths]
