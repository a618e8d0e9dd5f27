"""The server in front of others, in a thread of this process."""

import asyncio
import threading
from contextlib import contextmanager

from rlm.server.pool import Pool, look_at
from rlm.server.upstream_worker import UpstreamWorker
from tests.support.fake_vllm import probe_ids
from tests.support.serving import PATH, SUM, policy, running


@contextmanager
def fronted(*servers, room=16, max_queue=64, key=None, model="rlm", **options):
    """Serve what the servers generate. Yields what `served` does, with the pool for the engine."""
    urls = [getattr(server, "url", server) for server in servers]
    served, absent = asyncio.run(look_at(urls, key, model, probe_ids()))
    pool = Pool(urls, key, served=served, absent=absent, room=room, probe_ids=probe_ids())
    stops = frozenset({policy().tokenizer.eos_token_id})
    worker = UpstreamWorker(pool, policy().tokenizer, stop_ids=stops, max_queue=max_queue)
    with running(worker, **options) as place:
        place.pool = pool
        yield place


def arrived(place) -> list[int]:
    """Return how many tokens have come in of each sample that is being made.

    What a server has sent may still be on its way, and of what has not come in nothing has begun.
    """
    return [len(r.row.ids) for runs in list(place.service.worker._runs.values()) for r in runs]


class Asking(threading.Thread):
    """Asks in a thread of its own; `reply` is there after join()."""

    def __init__(self, place, path=PATH, **fields):
        super().__init__(daemon=True)
        body = (
            {"messages": [{"role": "user", "content": SUM}]} if "chat" in path else {"prompt": SUM}
        )
        self._ask = lambda: place.client.post(path, json=body | fields)
        self.start()

    def run(self) -> None:
        self.reply = self._ask()

    def wait(self):
        self.join(30)
        return self.reply
