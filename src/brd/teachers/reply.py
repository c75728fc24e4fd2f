"""What a server says when it does not answer: how long to wait, and why."""

import email.utils
import json
import re
import time
from collections.abc import Mapping


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header (a number, or a date by the server's own clock where it tells that)."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    try:
        now = email.utils.parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        now = time.time()
    return max(0.0, then - now)


def error_of(text: bytes) -> tuple[str, str]:
    """The message of an error's body, and its code and type, however the server puts them."""
    plain = text.decode("utf-8", "replace")
    try:
        found = json.loads(plain)
    except (ValueError, RecursionError):
        return plain or "no reason given", ""
    if isinstance(found, dict):
        inner = found["error"] if isinstance(found.get("error"), dict) else found
        message = next((inner[k] for k in ("message", "error", "detail") if inner.get(k)), plain)
        return str(message), f"{inner.get('code')} {inner.get('type')}"
    return plain, ""
