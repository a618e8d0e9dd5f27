"""Addresses and keys of other servers, as a user gives them."""

import os
import re

from rlm.errors import InputError

UPSTREAM_KEY, VLLM_KEY = "RLM_UPSTREAM_KEY", "RLM_VLLM_KEY"
HOST = r"[A-Za-z0-9]([\w.\-]*\w)?|\[[0-9A-Fa-f:.]+\]"
URL = re.compile(rf"(https?://(?:{HOST})(?::(\d{{1,5}}))?(?:/[\w.~\-]+)*?)(?:/v1)?/?", re.ASCII)


def server_url(text: str, *, flag: str, given: str, variable: str) -> str:
    """Return the URL without what every server has behind its own, /v1.

    flag, given: the setting, and it with its value, for the message. variable: where a key goes.
    InputError for anything but http(s)://HOST[:PORT][/PATH].

    >>> server_url("http://127.0.0.1:8000/v1/", flag="", given="", variable="")
    'http://127.0.0.1:8000'
    """
    if "@" in text:  # what is given may hold a secret: it is not repeated
        raise InputError(f"{flag}: a URL with a user or a password; leave them out and give the "
                         f"key as {variable}")  # fmt: skip
    match = URL.fullmatch(text)
    if not match or int(match[3] or 1) not in range(1, 65536):
        raise InputError(f"{given}: {text!r} is no URL of a server; use one such as "
                         "http://127.0.0.1:8001")  # fmt: skip
    return match[1]


def read_key(variable: str) -> str | None:
    """Return the key for a server out of an environment variable, None if there is none."""
    key = os.environ.get(variable, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"{variable}: has spaces or characters beyond ASCII, which no header can "
                         "carry; give the --api-key of the vllm servers")  # fmt: skip
    return key or None
