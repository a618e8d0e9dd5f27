"""GET /: the page in one file, with a policy that lets run only what is written in it."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")


def page_response() -> Response:
    """Return the page with its Content-Security-Policy."""
    text = PAGE.read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src {_hashes('style', text)}; script-src {_hashes('script', text)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


def _hashes(tag: str, text: str) -> str:
    """Return the sources that allow the page's own elements of that name, and no others."""
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text, re.DOTALL | re.IGNORECASE)
    digests = [hashlib.sha256(inside.encode()).digest() for inside in found]
    return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"
