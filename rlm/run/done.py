"""What a command of several parts has done already: started again, it does the rest.

done = Done(folder / "done.json", facts)
value = done.once("base", measure)     # called the first time, remembered afterwards
done.clear()                           # all of it is done: the next time begins anew
"""

import logging
from collections.abc import Callable
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.run.checkpoint import differences

logger = logging.getLogger("rlm")


class Done:
    """path: a JSON file. facts: plain values that must be the same when a command goes on.

    go_on: False begins anew whatever is there. defaults: see `checkpoint.differences`. InputError
    names facts that have changed.
    """

    def __init__(
        self, path: Path, facts: dict, *, go_on: bool = True, defaults: dict | None = None
    ):
        self.path, self.facts = path, facts
        saved = files.read_object(path) if go_on else {}
        self.values: dict = saved.get("values", {})
        told = differences(saved.get("facts", {}), facts, defaults) if saved else ""
        if told:
            raise InputError(
                f"{path.parent}: was stopped with other settings ({told}); give the old ones to go "
                "on, or --resume never to begin anew, or --run NAME for another folder"
            )

    def once(self, name: str, work: Callable):
        """Return work(), or what it returned before it was stopped; JSON has to hold it."""
        if name in self.values:
            logger.info("%s: done before the stop", name)
            return self.values[name]
        self.values[name] = work()
        files.write_json(self.path, {"facts": self.facts, "values": self.values})
        return self.values[name]

    def clear(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
