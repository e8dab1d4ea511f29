"""The dashboard: a web page on this machine that shows running programs.

    take_snapshots --sampling thread--> latest message --server thread--> one event stream per browser

Both threads are daemons. Programs are sampled only while a browser is connected. A browser that reads slowly
skips messages, and always receives the latest one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
import secrets
import socket
import threading
import time
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

from polarmap.errors import CodeError
from polarmap.live.html_export import SnapshotEncoder, read_page_file
from polarmap.live.pace import compute_pause_seconds
from polarmap.live.snapshots import ProgramSnapshot
from polarmap.optional import require_extra

with require_extra("the dashboard", "tornado", "live"):
    from tornado.httpserver import HTTPServer
    from tornado.iostream import StreamClosedError
    from tornado.web import Application, RequestHandler

# Minimum seconds between two samples. A sample takes a snapshot of each program that the page shows.
MIN_SAMPLING_INTERVAL = 0.25
# Maximum seconds between two samples, for samples that take long because a program does not answer. A sample
# that uses much processor time can be followed by a longer pause.
MAX_WAITING_INTERVAL = 10.0
# Unchanged snapshots are sent again after this many seconds, to show that the program still responds.
RESEND_SECONDS = 4.0
VIEWER_TIMEOUT = 30.0  # A browser that reads nothing for this many seconds is disconnected.
MAX_VIEWERS = 16  # the maximum number of browsers that can be connected at the same time
RETRY_MILLISECONDS = 1000  # A browser that has lost the connection connects again after this time.

# Time limits for the steps of closing the server, in seconds. Their sum is less than one second.
LAST_SAMPLE_SECONDS = 0.3  # maximum wait for the last snapshot
LAST_DELIVERY_SECONDS = 0.2  # maximum wait for browsers to receive the last snapshot
DISCONNECT_SECONDS = 0.1  # maximum wait for all connections to close
JOIN_SECONDS = 0.2  # maximum further wait for the server thread to end

MAX_HEADER_BYTES = 16 << 10
IDLE_CONNECTION_SECONDS = 60.0  # A connection without a request is closed after this many seconds.

PAGE_FILES = {
    "dashboard.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

WRONG_TOKEN_TEXT = "This page can only be opened with the complete URL that the program has printed."
WRONG_HOST_TEXT = "This page can only be opened on the machine of the program, as 127.0.0.1 or localhost."
WRONG_ORIGIN_TEXT = "Other pages cannot read this page."


class Message(NamedTuple):
    """A server-sent event with which browsers update the page.

    Attributes
    ----------
    version : int
        A number that increases with each message.
    event : str
        "message" for a list of snapshots, or "end" if these are the last ones.
    data : bytes
        The snapshots as a JSON list.
    """

    version: int
    event: str
    data: bytes

    def encode_event(self) -> bytes:
        """Encode the message as a server-sent event."""
        return b"event: " + self.event.encode() + b"\ndata: " + self.data + b"\n\n"


class DashboardServer:
    """A web server on this machine that shows running programs in a browser.

    Parameters
    ----------
    take_snapshots : callable
        Called without arguments on a thread of the server to get a list of ProgramSnapshots. It is called
        only while a browser is connected, and at most four times a second. If the calls are slow, the pauses
        between them are longer, so that the calls use at most 4 % of the time.
    port : int
        The TCP port. By default, the system chooses a free one.
    host : str
        The address of this machine to listen on. Only loopback addresses such as "127.0.0.1" are allowed.
    take_final_snapshots : callable, optional
        Called instead of `take_snapshots` when the server closes. By default, `take_snapshots` is called.

    Raises
    ------
    CodeError
        If `port` is not an integer between 0 and 65,535, or if `host` is not a loopback address.

    Examples
    --------
    >>> with DashboardServer(lambda: []) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(
        self,
        take_snapshots: Callable[[], Sequence[ProgramSnapshot]],
        port: int = 0,
        host: str = "127.0.0.1",
        take_final_snapshots: Callable[[], Sequence[ProgramSnapshot]] | None = None,
    ) -> None:
        _check_address(host, port)
        self._take_snapshots = take_snapshots
        self._take_final_snapshots = take_final_snapshots or take_snapshots
        self._host, self._port = host, port
        self._token = secrets.token_urlsafe(32)
        self._encoder = SnapshotEncoder()
        self._latest = Message(0, "message", b"")
        self._last_snapshots: list[ProgramSnapshot] = []
        self._sent_at = 0.0
        self._is_closing = threading.Event()
        # The sampling thread waits for this event. It is set while browsers are connected, and also when the
        # server closes, to wake the thread.
        self._has_viewers = threading.Event()
        self._viewers: set[_EventStreamHandler] = set()
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server_thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The URL of the page, with its secret token. Raises RuntimeError if the server is not started."""
        if self._socket is None:
            raise RuntimeError("the dashboard has no URL before it is started: call start() first")
        return f"http://{_format_host(self._host)}:{self._port}/?token={self._token}"

    def start(self) -> None:
        """Start the server. Does nothing if it has already been started.

        Raises OSError if the port is in use.
        """
        if self._server_thread is not None:
            return
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family)
        self._socket.setblocking(False)
        self._port = self._socket.getsockname()[1]
        _running_servers.add(self)
        is_ready = threading.Event()
        self._server_thread = threading.Thread(
            target=self._run_loop, args=(self._socket, is_ready), name="polarmap-dashboard", daemon=True
        )
        self._server_thread.start()
        is_ready.wait()
        threading.Thread(target=self._sample_until_closed, name="polarmap-sampling", daemon=True).start()

    def close(self) -> None:
        """Send the final state to all browsers, disconnect them, and stop the server.

        This takes at most one second.
        """
        thread, loop = self._server_thread, self._loop
        if self._is_closing.is_set() or thread is None or loop is None:
            return
        self._is_closing.set()
        self._has_viewers.set()
        with contextlib.suppress(RuntimeError):  # The event loop has already ended, so no wake-up is needed.
            loop.call_soon_threadsafe(self._closing.set)
        thread.join(LAST_SAMPLE_SECONDS + LAST_DELIVERY_SECONDS + DISCONNECT_SECONDS + JOIN_SECONDS)
        _running_servers.discard(self)

    def __enter__(self) -> DashboardServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- on the sampling thread ---

    def _sample_until_closed(self) -> None:
        while not self._is_closing.is_set():
            self._has_viewers.wait()
            if self._is_closing.is_set():
                break
            started_at, cpu_started_at = time.monotonic(), time.thread_time()
            self._sample(self._take_snapshots, "message")
            seconds, cpu_seconds = time.monotonic() - started_at, time.thread_time() - cpu_started_at
            self._is_closing.wait(_compute_sampling_interval(seconds, cpu_seconds))
            self._has_viewers.clear()
            # Set the event again if a browser is connected, or has connected just before `clear`.
            if self._viewers or self._is_closing.is_set():
                self._has_viewers.set()
        if self._viewers:
            self._sample(self._take_final_snapshots, "end")
        self._call_in_loop(self._is_last_sampled.set)

    def _sample(self, take_snapshots: Callable[[], Sequence[ProgramSnapshot]], event: str) -> None:
        """Take snapshots of the programs and send them to all browsers, as a message of type `event`.

        If no snapshot can be taken, the browsers continue to show the previous ones.
        """
        try:
            snapshots = list(take_snapshots())
            now = time.monotonic()
            is_due = event == "end" or now > self._sent_at + RESEND_SECONDS
            if not is_due and self._is_unchanged(snapshots):
                return
            data = self._encoder.encode(snapshots).encode()
        except Exception:  # An error in the dashboard must not affect the program that it shows.
            return
        self._last_snapshots, self._sent_at = snapshots, now
        self._call_in_loop(lambda: self._publish(event, data))

    def _is_unchanged(self, snapshots: list[ProgramSnapshot]) -> bool:
        """Return whether the snapshots are the same objects as in the last sample.

        Comparing identities is enough, because a hub returns the same object until it takes a new snapshot.
        """
        previous = self._last_snapshots
        return (
            bool(self._latest.data)
            and len(snapshots) == len(previous)
            and all(new is old for new, old in zip(snapshots, previous))
        )

    def _call_in_loop(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The event loop has ended, and no browser is connected.
                self._loop.call_soon_threadsafe(function)

    # --- on the server thread ---

    def _run_loop(self, listening_socket: socket.socket, is_ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(listening_socket, is_ready))
        finally:
            is_ready.set()

    async def _serve(self, listening_socket: socket.socket, is_ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing, self._is_last_sampled = asyncio.Event(), asyncio.Event()
        application = Application(
            [
                ("/events", _EventStreamHandler, {"server": self}),
                (r"/(dashboard\.css|dashboard\.js|icon\.svg)", _FileHandler, {"server": self}),
                ("/(?:dashboard.html)?", _FileHandler, {"server": self}),
            ],
            default_handler_class=_MissingPageHandler,
            default_handler_args={"server": self},
            # Do not log requests. The log would contain the secret token, and refused requests would be
            # printed on the user's terminal.
            log_function=lambda handler: None,
        )
        http_server = HTTPServer(
            application,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=0,
            idle_connection_timeout=IDLE_CONNECTION_SECONDS,
        )
        http_server.add_socket(listening_socket)
        is_ready.set()
        await self._closing.wait()
        http_server.stop()
        await _await_briefly(self._is_last_sampled.wait(), LAST_SAMPLE_SECONDS)
        await self._end_streams()
        await _await_briefly(http_server.close_all_connections(), DISCONNECT_SECONDS)

    async def _end_streams(self) -> None:
        """Send the last message to all browsers, and disconnect them.

        Browsers that have not read the message within LAST_DELIVERY_SECONDS are disconnected anyway.
        """
        if self._latest.event != "end":  # No last snapshot was available in time.
            self._publish("end", self._latest.data or b"[]")
        if self._viewers:
            ends = [viewer.finished for viewer in self._viewers]
            await asyncio.wait(ends, timeout=LAST_DELIVERY_SECONDS)
        for viewer in list(self._viewers):
            viewer.disconnect()

    def _publish(self, event: str, data: bytes) -> None:
        """Store a new message, and wake all event streams, which then send it to their browsers."""
        self._latest = Message(self._latest.version + 1, event, data)
        for viewer in self._viewers:
            viewer.has_news.set()

    @property
    def latest_message(self) -> Message:
        """The latest message for browsers. Its `data` is empty if no snapshot has been taken yet."""
        return self._latest

    def add_viewer(self, viewer: _EventStreamHandler) -> bool:
        """Register a browser's event stream. Return False if there are MAX_VIEWERS streams already."""
        if len(self._viewers) >= MAX_VIEWERS or self._is_closing.is_set():
            return False
        self._viewers.add(viewer)
        self._has_viewers.set()
        return True

    def remove_viewer(self, viewer: _EventStreamHandler) -> None:
        """Remove an event stream whose browser has disconnected."""
        self._viewers.discard(viewer)

    @property
    def n_viewers(self) -> int:
        """The number of connected browsers."""
        return len(self._viewers)

    # --- access ---

    @property
    def cookie_name(self) -> str:
        """The name of the cookie with the secret token.

        Browsers send a cookie to all ports of a machine. So the name contains the port, to distinguish
        servers.
        """
        return f"polarmap_{self._port}"

    @property
    def token(self) -> str:
        """The secret that a browser must present with each request, in the URL or in a cookie."""
        return self._token

    @property
    def allowed_hosts(self) -> set[str]:
        """The allowed values of the HTTP header Host. Requests with other values are refused.

        This prevents DNS rebinding attacks, in which the domain name of a malicious site resolves to this
        machine. The browser then sends the name of that site as the host.
        """
        return {f"{name}:{self._port}" for name in (_format_host(self._host), "127.0.0.1", "localhost")}

    def is_valid_token(self, candidate: bytes) -> bool:
        """Return whether `candidate` is the secret token.

        The comparison takes constant time, which prevents timing attacks.
        """
        return hmac.compare_digest(candidate, self._token.encode())

    def close_inherited_socket(self) -> None:
        """Close the listening socket in a forked child process."""
        if self._socket is not None:
            self._socket.close()


# --- requests ----------------------------------------------------------------------------------


class _Handler(RequestHandler):
    """The base class of request handlers, which refuses requests without the secret token.

    The handler also refuses requests that use another host name or that come from pages of other sites.
    """

    def initialize(self, server: DashboardServer) -> None:
        self.dashboard_server = server

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse the request with status 403 if it is not allowed. tornado calls this before `get`."""
        refusal = self._explain_refusal()
        if refusal:
            self._send_text(403, refusal)

    def _explain_refusal(self) -> str:
        """Return why the request is refused, or "" if it is allowed."""
        server, headers = self.dashboard_server, self.request.headers
        if headers.get("Host", "").lower() not in server.allowed_hosts:
            return WRONG_HOST_TEXT
        origin = headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in server.allowed_hosts}:
            return WRONG_ORIGIN_TEXT
        cookie = self.get_cookie(server.cookie_name, "") or ""
        if server.is_valid_token(self.request.query_arguments.get("token", [b""])[-1]):
            self.set_cookie(server.cookie_name, server.token, httponly=True, samesite="Strict")
        elif not server.is_valid_token(cookie.encode(errors="replace")):
            return WRONG_TOKEN_TEXT
        return ""

    def _send_text(self, status: int, text: str) -> Future[None]:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        return self.finish(text + "\n")

    def write_error(self, status_code: int, **options: Any) -> None:
        """Answer with the status and its reason as plain text, without a traceback."""
        self._send_text(status_code, f"{status_code}: {self._reason}.")

    def log_exception(self, *exception: Any) -> None:
        """Do nothing. A log entry would contain the URL, which contains the secret token."""


class _FileHandler(_Handler):
    """Handles requests for the files of the dashboard page, such as its style sheet."""

    async def get(self, name: str = "dashboard.html") -> None:
        self.set_header("Content-Type", PAGE_FILES[name])
        await self.finish(read_page_file(name))


class _MissingPageHandler(_Handler):
    """Handles requests for pages that do not exist, with status 404."""

    async def get(self) -> None:
        await self._send_text(404, "This page does not exist.")


class _EventStreamHandler(_Handler):
    """Handles the connection of one browser, which receives snapshots as a stream of server-sent events.

    Attributes
    ----------
    has_news : asyncio.Event
        Set by the server when it has a new message.
    finished : Future
        Done once the stream has ended.
    """

    def initialize(self, server: DashboardServer) -> None:
        super().initialize(server)
        self.has_news = asyncio.Event()
        self.finished: Future[None] = asyncio.get_running_loop().create_future()
        self._disconnected: Future[None] = asyncio.get_running_loop().create_future()

    def _explain_refusal(self) -> str:
        # Browsers set this header themselves, so a page of another site cannot forge it.
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return WRONG_ORIGIN_TEXT
        return super()._explain_refusal()

    async def get(self) -> None:
        if not self.dashboard_server.add_viewer(self):
            await self._send_text(503, f"At most {MAX_VIEWERS} browsers can be connected.")
            return
        self.set_header("Content-Type", "text/event-stream")
        try:
            await self._send_messages()
        finally:
            self.dashboard_server.remove_viewer(self)
            _set_done(self.finished)

    async def _send_messages(self) -> None:
        """Send the latest message whenever there is a new one, until the browser disconnects."""
        is_reading = await self._send(f"retry: {RETRY_MILLISECONDS}\n\n".encode())
        sent_version = 0
        while is_reading and not self._disconnected.done():
            self.has_news.clear()
            message = self.dashboard_server.latest_message
            if message.version == sent_version or not message.data:
                await self.has_news.wait()
                continue
            is_reading, sent_version = await self._send(message.encode_event()), message.version
            if message.event == "end":
                return
        self.disconnect()

    async def _send(self, data: bytes) -> bool:
        """Send an event, and return whether the browser has read it in time.

        The caller encodes the next event only after this one has been sent. So if a browser reads slowly, at
        most one event is in memory for it.
        """
        try:
            self.write(data)
            flushed = asyncio.ensure_future(self.flush())
        except StreamClosedError:
            return False
        # If the browser disconnects, `flush` never completes. So wait for the end of the connection, too.
        futures: list[Future[None]] = [flushed, self._disconnected]
        await asyncio.wait(futures, timeout=VIEWER_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        has_read = flushed.done() and flushed.exception() is None
        flushed.cancel()
        return has_read

    def on_connection_close(self) -> None:
        """End the stream. Called by tornado when the browser has disconnected."""
        _set_done(self._disconnected)
        self.has_news.set()

    def disconnect(self) -> None:
        """Close the connection, even if the browser has not read everything."""
        self.on_connection_close()
        if not self._finished:
            self.detach().close()


def _set_done(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _await_briefly(awaitable: Awaitable[object], seconds: float) -> None:
    """Wait until an awaitable is done, but for at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(awaitable, seconds)


def _compute_sampling_interval(seconds: float, cpu_seconds: float) -> float:
    """Return how many seconds to pause after a sample. The longer a sample takes, the longer the pause.

    `seconds` and `cpu_seconds` are the run time and the processor time of the last sample.
    """
    waiting_interval = min(compute_pause_seconds(seconds, MIN_SAMPLING_INTERVAL), MAX_WAITING_INTERVAL)
    return compute_pause_seconds(cpu_seconds, waiting_interval)


# --- addresses ---------------------------------------------------------------------------------


def _check_address(host: Any, port: Any) -> None:
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 1 << 16:
        raise CodeError(
            f"`port` must be an integer between 0 and 65,535, got {port!r}. Pass 0 for any free one."
        )
    if host != "localhost":
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise CodeError(
                f"`host` must be a loopback address, got {host!r}. Pass '127.0.0.1'. To view the page on "
                "another machine, forward the same port, as in: ssh -L 8000:127.0.0.1:8000 host"
            )


def _format_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_running_servers: WeakSet[DashboardServer] = WeakSet()


def _close_inherited_sockets() -> None:
    """Close the listening sockets of all servers in a forked child process.

    Otherwise, the child would keep the ports in use after its parent has closed the servers.
    """
    for server in list(_running_servers):
        server.close_inherited_socket()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_sockets)
