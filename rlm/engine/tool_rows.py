"""Rows whose tools are asked: they get the result in place, wait outside, or begin again behind it.

A part of `rlm.engine.batching.ContinuousBatch`. It does not know what a tool is (rlm.tools).
"""

from collections import deque
from typing import Any

from rlm.engine.kv_cache import Prefix
from rlm.engine.requests import Event, Group, Row
from rlm.records import Prompt
from rlm.tools.toolbox import Toolbox

WAIT_SECONDS = 0.02  # that a step waits for tools where nothing else is to be done


class ToolRows:
    """_parked: rows that wait for a tool, and what the cache had of them."""

    stop_ids: frozenset[int]
    _rows: list[Row]
    _queue: deque[Group]
    _parked: list[tuple[Row, Prefix | None]]
    _runner: Any
    _mix: Any

    def _answer(self, called: list[int], events: list[Event]) -> list[int]:
        """Put in the results of calls that have one; return the rows that leave until later.

        Those wait for a tool, or begin again behind their result where a runner cannot go on.
        """
        left = []
        for index in called:
            row = self._rows[index]
            assert row.calls is not None and row.calls.job is not None
            if row.calls.job.outcome is None:
                self._parked.append((row, self._runner.save(index, row.cached)))
                left.append(index)
                continue
            self._put(row, events)
            if not self._runner.goes_on:
                self._begin_again(row)
                left.append(index)
        return left

    def _put(self, row: Row, events: list[Event]) -> None:
        """Put in the result of a row's call; its event, if it is watched, goes to the others."""
        event = row.answer(self.stop_ids)
        if row.watched:
            events.append(event)

    def _begin_again(self, row: Row) -> None:
        """Let a row be the next to join, with a prompt that goes on to where it is."""
        whole = Prompt(row.origin.ids + row.ids, row.origin.prefill)
        row.group, row.more = Group(whole, deque([row])), 0
        self._queue.appendleft(row.group)

    def _toolboxes(self) -> list[Toolbox]:
        """The toolboxes that rows wait for, each once."""
        found = [row.calls.bound.toolbox for row, _ in self._parked if row.calls]
        return list(dict.fromkeys(found))

    def _rejoin(self) -> list[Event]:
        """Let the rows whose tools have answered go on; return the events of watched ones."""
        events: list[Event] = []
        for box in self._toolboxes():
            box.poll()
        parked, self._parked = self._parked, []
        for row, kept in parked:
            assert row.calls is not None and row.calls.job is not None
            if row.calls.job.outcome is None:
                self._parked.append((row, kept))
                continue
            self._put(row, events)
            if kept is None:
                self._begin_again(row)
                continue
            waiting = sum(len(group.waiting) for group in self._queue)
            self._runner.restore(self._rows, row, kept, waiting)
            self._rows.append(row)
            self._mix = None
        return events
