"""Limits of a request: the size of its body and its rate, checked before a route reads it."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Limits"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SECURITY_HEADERS = (
    (b"content-security-policy",
     b"default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
     b"base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
)
# Addresses whose rate is counted at a time, about 1 MB; the oldest are dropped.
MAX_CLIENTS = 10_000


class _TooLarge(Exception):
    pass


class Limits:
    """ASGI middleware: refuse what is too large or too frequent; add the headers of safety.

    Parameters
    ----------
    app : ASGI application
    max_body_bytes : int
        A larger body is refused by its announced length, or where it passes the limit.
    requests_per_minute : int
        For each address; a client that was idle may send as many at once. 0 for no limit.
    """

    def __init__(self, app: Any, *, max_body_bytes: int, requests_per_minute: int):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.per_second = requests_per_minute / 60.0
        self.burst = float(requests_per_minute)
        self.clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def safe_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS]}
            await send(message)

        wait_s = self._wait(str((scope.get("client") or ("?",))[0]))
        if wait_s > 0:
            await _refuse(safe_send, 429, "too many requests", f"Wait {wait_s:.0f} s.", [
                (b"retry-after", str(int(wait_s) + 1).encode())])
            return
        if self._announced(scope) > self.max_body_bytes:
            await self._refuse_size(safe_send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise _TooLarge
            return message

        try:
            await self.app(scope, counted_receive, safe_send)
        except _TooLarge:
            if not started:
                await self._refuse_size(safe_send)

    @staticmethod
    def _announced(scope: Message) -> int:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        return int(length) if length.isdigit() else 0

    async def _refuse_size(self, send: Send) -> None:
        await _refuse(
            send, 413, f"the body is too large, {self.max_body_bytes} bytes are allowed",
            "A headerlet holds header cards and distortion tables, no pixels.",
            [(b"connection", b"close")],
        )

    def _wait(self, client: str) -> float:
        """Return how long a client must wait (a bucket of tokens that fills with time)."""
        if not self.per_second:
            return 0.0
        now = time.monotonic()
        tokens, then = self.clients.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - then) * self.per_second)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self.per_second
        self.clients[client] = (tokens - (wait_s == 0.0), now)
        while len(self.clients) > MAX_CLIENTS:
            self.clients.popitem(last=False)
        return wait_s


async def _refuse(
    send: Send, status: int, error: str, hint: str, headers: list[tuple[bytes, bytes]]
) -> None:
    body = json.dumps({"error": error, "hint": hint}).encode()
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        *headers]})
    await send({"type": "http.response.body", "body": body})
