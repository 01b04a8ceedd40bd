"""Who may ask the server: the person who has the token, from a page of this server, on this machine."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN_BYTES = 24
SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    # Nothing but files of this server is loaded or run: whatever an id or an error holds, it is no code.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class Guard:
    """Lets requests through that carry the token, in the address once and in a cookie from then on.

    The name of the host is compared too: another site whose name was made to mean this machine gets nothing.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._cookie = f"fmwsss-view-{port}"  # cookies are of a host, whatever its port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Any:
        """The refusal, or the cookie; None where the request may go on."""
        if request.headers.get("host", "") not in self._hosts:
            return PlainTextResponse("this server answers to 127.0.0.1 alone", status_code=421)
        given = request.query_params.get("token")
        if given is not None and request.method == "GET":
            if not self._is_token(given):
                return PlainTextResponse("this token is not of this server: use the address that it printed", 403)
            rest = [(key, value) for key, value in parse_qsl(request.url.query) if key != "token"]
            there = request.url.path + (f"?{urlencode(rest)}" if rest else "")
            # A path of two slashes would be another host.
            response = RedirectResponse("/" + there.lstrip("/"), status_code=303)
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return response
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return PlainTextResponse("use the address with the token that `fmwsss view` printed", status_code=403)
        if request.method not in SAFE_METHODS:
            return self._of_a_page(request)
        return None

    def _of_a_page(self, request: Request) -> Any:
        """A page of another origin can't send JSON with this header without asking first, which is never answered."""
        origin = request.headers.get("origin")
        is_ours = origin is None or origin.partition("://")[2] in self._hosts
        if is_ours and request.headers.get("x-fmwsss") == "1":
            return None
        return PlainTextResponse("only pages of this server may change anything", status_code=403)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())
