"""Seeds by hashing: neighbouring seeds would share almost all of their draws."""

import hashlib


def derive(*parts) -> int:
    """Return a 63-bit seed from any parts (task, split, index, ...), the same on every machine.

    >>> derive("addition", "train", 0) == derive("addition", "train", 0)
    True
    >>> derive("addition", 1, 2) == derive("addition", 12)
    False
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
