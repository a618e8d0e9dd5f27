"""What GET /metrics shows, as Prometheus reads it; a registry of its own for each server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """The figures of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter(
            "rlm_requests", "Requests by path and status", ["path", "status"], **own
        )
        self.cancelled = Counter("rlm_cancelled", "Requests whose client went away", **own)
        self.first_token = Histogram(
            "rlm_first_token_seconds",
            "From the acceptance of a request to its first token",
            buckets=SECONDS,
            **own,
        )
        self.total = Histogram(
            "rlm_request_seconds", "From the acceptance to the end", buckets=SECONDS, **own
        )
        self.rate = Histogram(
            "rlm_tokens_per_second",
            "Completion tokens of a request by its time outside the queue",
            buckets=RATES,
            **own,
        )
        self.tunnel_up = Gauge("rlm_tunnel_up", "1 while there is a public URL", **own)

    def count(self, path: str, status: int) -> None:
        """Count a response; "" is the path of all that are unknown."""
        self.requests.labels(path, str(status)).inc()

    def watch(self, worker) -> None:
        """Show the state of the worker as it is when somebody looks."""
        own = {"registry": self.registry}
        Gauge("rlm_queue_depth", "Requests that wait for a row", **own).set_function(
            lambda: worker.queued
        )
        Gauge("rlm_rows", "Sequences that run now", **own).set_function(lambda: worker.rows)
        Gauge("rlm_worker_up", "1 while the engine's thread works", **own).set_function(
            lambda: worker.alive
        )
        Gauge("rlm_completion_tokens", "Tokens sampled since the start", **own).set_function(
            lambda: worker.tokens
        )

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self.registry)
