"""Whether the Hugging Face hub answers, known within 2 seconds and without its libraries.

The hub's own clients retry for minutes when there is no network, and they read their offline
switches only once, when they are imported: so ask here first.
"""

import os
import threading
from pathlib import Path

TRUE = ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline_switch() -> str | None:
    """Return the name of the environment variable that forbids the network, None if none does."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in TRUE:
            return name
    return None


def reachable(timeout_seconds: float = 2.0) -> bool:
    """Return whether the hub answers a request, with whatever status, in the given time.

    Honours the proxies of the environment. In a thread of its own, since neither the look-up of
    a name nor a slow handshake keeps to a socket's timeout.
    """
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    answered, done = threading.Event(), threading.Event()

    def probe() -> None:
        try:
            request = urllib.request.Request(endpoint(), method="HEAD")
            urllib.request.urlopen(request, timeout=timeout_seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            # A certificate that only the hub's client knows: something is there and answers.
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                answered.set()
        # Cut off, no answer in time, no HTTP, an address that is none.
        except (OSError, ValueError, http.client.HTTPException):
            pass
        finally:
            done.set()

    threading.Thread(target=probe, daemon=True).start()
    done.wait(timeout_seconds)
    return answered.is_set()


def cached_dataset(name: str) -> bool:
    """Return whether the local cache of `datasets` holds something of the data set `name`."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache_home / "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    return any(cache.glob(name.replace("/", "___") + "/*/*/*"))
