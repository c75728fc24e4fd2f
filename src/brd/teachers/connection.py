"""How a server is reached: certificates and proxies."""

import ssl
import urllib.request
from urllib.parse import urlsplit

from brd.errors import BrdError
from brd.sections.teacher import Server


def trust(settings: Server) -> ssl.SSLContext | bool:
    """The certificates by which a server is trusted: the system's (True), a file's, or any (False)."""
    if not settings.verify_tls:
        return False
    if settings.ca_bundle is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise BrdError(
            f"teacher.server.ca_bundle: {settings.ca_bundle}: no file of certificates in PEM ({error})"
        ) from None


def proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL. The loopback address is never behind one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)
