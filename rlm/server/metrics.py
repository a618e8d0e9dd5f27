"""What GET /metrics shows, as Prometheus reads it; a registry of its own for each server."""

from functools import partial
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """The metrics of one server."""

    def __init__(self):
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "rlm_requests", "Requests by path and status", ["path", "status"], registry=own
        )
        self.cancelled = Counter("rlm_cancelled", "Requests whose client went away", registry=own)
        self.first_token = Histogram(
            "rlm_first_token_seconds",
            "From the acceptance of a request to its first token",
            buckets=SECONDS,
            registry=own,
        )
        self.total = Histogram(
            "rlm_request_seconds", "From the acceptance to the end", buckets=SECONDS, registry=own
        )
        self.rate = Histogram(
            "rlm_tokens_per_second",
            "Completion tokens of a request by its time outside the queue",
            buckets=RATES,
            registry=own,
        )
        self.tunnel_up = Gauge("rlm_tunnel_up", "1 while there is a public URL", registry=own)

    def count(self, path: str, status: int) -> None:
        """Count a response; "" is the path of all that are unknown."""
        self.requests.labels(path, str(status)).inc()

    def watch(self, worker) -> None:
        """Show the state of the worker as it is when somebody looks."""

        def show(name: str, text: str, look) -> None:
            Gauge(name, text, registry=self.registry).set_function(look)

        show("rlm_queue_depth", "Requests that wait for a row", lambda: worker.queued)
        show("rlm_rows", "Sequences that run now", lambda: worker.rows)
        show("rlm_worker_up", "1 while the engine's thread works", lambda: worker.alive)
        show("rlm_completion_tokens", "Tokens sampled since the start", lambda: worker.tokens)
        if worker.upstreams:
            show("rlm_upstream_moved", "Samples begun anew elsewhere", lambda: worker.moved)
        for name, text, look in (
            ("rlm_upstream_up", "1 while the server is in use", attrgetter("up")),
            ("rlm_upstream_in_flight", "Samples that run there", attrgetter("in_flight")),
            ("rlm_upstream_failures", "Requests it has lost", attrgetter("failures")),
        ):
            gauge = Gauge(name, text, ["upstream"], registry=self.registry)
            for upstream in worker.upstreams:
                gauge.labels(upstream.url).set_function(partial(look, upstream))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
