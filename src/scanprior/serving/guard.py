"""Who may ask: everybody on this machine, or whoever has the token; and what every answer says of itself."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scanprior.serving.counting import Counts

log = logging.getLogger("scanprior.serving")

OPEN = ("/", "/health", "/session")
"""What may be read without a token, as may the files of the page: nothing of the runs is in it."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_KEY = secrets.token_bytes(32)
"""Of this process: what it let in, a later one does not know."""


def cookie_name(scope: Scope) -> str:
    """Return the name of the cookie by which the links of the page are allowed.

    Browsers send cookies to every port of a machine, so that two servers need two names.
    """
    server = scope.get("server") or ("", 0)
    return f"scanprior-{server[1]}"


def session_of(token: str) -> str:
    """Return the value of the cookie that stands for a token; the token cannot be read from it."""
    return hmac.new(_KEY, token.encode(), hashlib.sha256).hexdigest()


def is_session(cookie: str, token: str) -> bool:
    """Say whether a cookie stands for a token, in a time that tells nothing of either."""
    return hmac.compare_digest(cookie.encode(), session_of(token).encode())


def is_loopback(host: str) -> bool:
    """Say whether a name or address is of this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks and completes every request: host and token, headers, counts, a line in the log.

    On loopback the ``Host`` of a request has to be loopback, too: otherwise a page of another site could have its
    own name led here and read the answers. Elsewhere the token decides. Browsers say from which site a page sends;
    other sites' pages are refused.

    Args:
        app: what answers.
        token: that a request has to carry; None = none.
        local: whether only requests to loopback are answered.
        counts: what is counted.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, local: bool, counts: Counts) -> None:
        self.app, self.counts, self.local = app, counts, local
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500

        async def completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, receive, completed)
        finally:
            route = getattr(
                scope.get("route"), "path", "other"
            )  # never the path itself, which may name somebody
            seconds = time.monotonic() - begun
            self.counts.requests.labels(route, str(status)).inc()
            self.counts.seconds.labels(route).observe(seconds)
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            log.info("%s %s %d %.3f s", method, route, status, seconds)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self.local and not is_loopback(_host(headers.get("host", ""))):
            return JSONResponse({"detail": "this server answers requests to localhost alone"}, 421)
        path, asking = scope["path"], scope["method"] in ("GET", "HEAD")
        if not asking and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return JSONResponse({"detail": "pages of other sites cannot send anything here"}, 403)
        if self._token is None or path.startswith("/page/") or (path in OPEN and asking):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")
        if path != "/session" and is_session(cookie, self._token):
            return None
        return JSONResponse(
            {"detail": "this server needs its token: Authorization: Bearer TOKEN"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )


def _host(value: str) -> str:
    """Return the name or address of a ``Host`` header, without its port."""
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    return value.partition(":")[0]
