from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

pytest.importorskip("tornado", reason="comes with the extra live")

from polarmap.errors import CodeError
from polarmap.live import dashboard
from polarmap.live.dashboard import DashboardServer
from polarmap.live.snapshots import MapSnapshot, ProgramSnapshot

DEADLINE_SECONDS = 20.0
# The number of tasks of a map whose snapshot does not fit into the buffers of a connection.
LARGE_N = 6_000_000


def make_program(n_finished_maps: int = 0, n: int = 4) -> ProgramSnapshot:
    running_map = MapSnapshot(1, "f", "code", "pool", n, n, n, 0, 0.5, True, "q" * n)
    return ProgramSnapshot(7, "fit.py", "laptop", 0.0, n_finished_maps, maps=(running_map,))


class Source:
    """Takes snapshots for a server: counts the calls, and lets tests wait for them."""

    def __init__(self, take_snapshots: Callable[[], list[ProgramSnapshot]] | None = None) -> None:
        self.take_snapshots = take_snapshots or (lambda: [make_program(len(self.times))])
        self.times: list[float] = []
        self.was_called = threading.Event()

    def __call__(self) -> list[ProgramSnapshot]:
        self.times.append(time.monotonic())
        self.was_called.set()
        return self.take_snapshots()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[DashboardServer]:
    with DashboardServer(source) as one:
        yield one


def request(
    server: DashboardServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and text of the response."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def query_of(server: DashboardServer) -> str:
    return f"?{urlsplit(server.url).query}"


def cookie_of(server: DashboardServer) -> str:
    _, headers, _ = request(server, f"/{query_of(server)}")
    return headers["Set-Cookie"].partition(";")[0]


class EventStream:
    """A browser that reads server-sent events."""

    def __init__(self, server: DashboardServer, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.connect(("127.0.0.1", urlsplit(server.url).port))
        request_text = (
            f"GET /events{query_of(server)} HTTP/1.0\r\nHost: {urlsplit(server.url).netloc}\r\n\r\n"
        )
        self.socket.sendall(request_text.encode())
        self.file = self.socket.makefile("rb")

    def read_event(self) -> tuple[str, list[ProgramSnapshot]] | None:
        """Return the name and the snapshots of the next event, or None if the server has disconnected."""
        name = "message"
        for line in self.file:
            if not line.endswith(b"\n"):
                return None  # The connection was closed in the middle of an event.
            key, _, value = line.decode().rstrip("\r\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                return name, [ProgramSnapshot.from_json(json.dumps(item)) for item in json.loads(value)]
        return None

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- access ------------------------------------------------------------------------------------


def test_the_page_is_served_to_who_knows_the_token(server: DashboardServer) -> None:
    status, headers, text = request(server, f"/{query_of(server)}")
    assert status == 200 and "<title>polarmap</title>" in text
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    for path in ("/", "/dashboard.css", "/dashboard.js", "/icon.svg"):
        assert request(server, path, Cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.parametrize("path", ["/", "/dashboard.js", "/events", "/missing"])
@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=%F6"])
def test_requests_without_the_token_are_refused(server: DashboardServer, path: str, query: str) -> None:
    status, headers, text = request(server, path + query)
    assert status == 403 and text.count(".") == 1
    assert "Set-Cookie" not in headers


def test_a_wrong_cookie_is_refused(server: DashboardServer) -> None:
    name = cookie_of(server).partition("=")[0]
    assert request(server, "/", Cookie=f"{name}=wrong")[0] == 403


@pytest.mark.parametrize("host", ["example.org", "example.org:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_other_names_of_this_machine_are_refused(server: DashboardServer, host: str) -> None:
    # Another site's name may resolve to 127.0.0.1, and its scripts could then read the page.
    named = host.format(port=urlsplit(server.url).port)
    assert request(server, f"/{query_of(server)}", Host=named)[0] == 403


def test_localhost_is_allowed(server: DashboardServer) -> None:
    host = f"localhost:{urlsplit(server.url).port}"
    assert request(server, f"/{query_of(server)}", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_other_pages_cannot_read_the_stream(server: DashboardServer, headers: dict[str, str]) -> None:
    assert request(server, "/events", Cookie=cookie_of(server), **headers)[0] == 403


def test_responses_carry_security_headers(server: DashboardServer) -> None:
    for path in ("/", f"/{query_of(server)}"):
        _, headers, _ = request(server, path)
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in headers


def test_only_the_files_of_the_page_are_served(server: DashboardServer) -> None:
    cookie = cookie_of(server)
    for path in ("/dashboard.py", "/../snapshots.py", "/page/dashboard.html", "//etc/passwd"):
        status, _, text = request(server, path, Cookie=cookie)
        assert status == 404 and "import" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(server: DashboardServer, method: str) -> None:
    assert request(server, "/", method, Cookie=cookie_of(server))[0] in (403, 405)


def test_refused_requests_do_not_appear_on_the_terminal(
    server: DashboardServer, capfd: pytest.CaptureFixture[str]
) -> None:
    request(server, "/?token=wrong")
    request(server, "/?token=%FF")
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_each_server_has_its_own_token(source: Source) -> None:
    with DashboardServer(source) as one, DashboardServer(source) as other:
        assert query_of(one) != query_of(other)
        assert request(one, "/", Cookie=cookie_of(other))[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "", "example.org"])
def test_the_server_listens_on_this_machine_only(source: Source, host: str) -> None:
    with pytest.raises(CodeError, match="`host` must be a loopback address"):
        DashboardServer(source, host=host)


@pytest.mark.parametrize("port", [-1, 65536, 1.5, "80", True])
def test_invalid_ports_are_rejected(source: Source, port: int) -> None:
    with pytest.raises(CodeError, match="`port` must be an integer between 0 and 65,535"):
        DashboardServer(source, port)


def test_a_port_in_use_is_an_error(server: DashboardServer, source: Source) -> None:
    other = DashboardServer(source, urlsplit(server.url).port or 0)
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.close()


def test_a_server_that_has_not_started_has_no_url(source: Source) -> None:
    with pytest.raises(RuntimeError, match="call start"):
        _ = DashboardServer(source).url


# --- events ------------------------------------------------------------------------------------


def test_events_carry_snapshots(server: DashboardServer, source: Source) -> None:
    with EventStream(server) as stream:
        assert stream.read_event() == ("message", [make_program(1)])
        assert stream.read_event() == ("message", [make_program(2)])


def test_snapshots_are_taken_only_while_a_browser_is_connected(
    server: DashboardServer, source: Source
) -> None:
    request(server, f"/{query_of(server)}")
    assert source.times == []
    with EventStream(server) as stream:
        stream.read_event()
    wait_until(lambda: server.n_viewers == 0)
    # A snapshot that was due when the browser disconnected may still be taken.
    time.sleep(2 * dashboard.MIN_SAMPLING_INTERVAL)
    n_calls = len(source.times)
    assert not wait_for_call(source, 3 * dashboard.MIN_SAMPLING_INTERVAL)
    assert len(source.times) == n_calls
    with EventStream(server) as stream:
        stream.read_event()
        assert wait_for_call(source, DEADLINE_SECONDS)


def wait_for_call(source: Source, seconds: float) -> bool:
    source.was_called.clear()
    return source.was_called.wait(seconds)


def test_snapshots_are_taken_at_most_four_times_a_second(server: DashboardServer, source: Source) -> None:
    with EventStream(server) as stream, EventStream(server):
        for _ in range(4):
            stream.read_event()
    intervals = [later - earlier for earlier, later in zip(source.times, source.times[1:])]
    assert min(intervals) >= 0.25


def test_slow_snapshots_are_taken_less_often() -> None:
    def take_slowly() -> list[ProgramSnapshot]:
        time.sleep(0.05)
        return [make_program(len(slow_source.times))]

    slow_source = Source(take_slowly)
    with DashboardServer(slow_source) as server, EventStream(server) as stream:
        stream.read_event()
        stream.read_event()
    assert slow_source.times[1] - slow_source.times[0] >= 26 * 0.05


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "interval"),
    [(0.001, 0.001, 0.25), (0.1, 0.1, 2.5), (0.1, 0.001, 2.5), (5.0, 0.01, 10.0), (5.0, 1.0, 25.0)],
)
def test_the_interval_bounds_the_processor_time(seconds: float, cpu_seconds: float, interval: float) -> None:
    assert dashboard._compute_sampling_interval(seconds, cpu_seconds) == pytest.approx(interval)


def test_an_error_of_a_snapshot_does_not_end_the_stream() -> None:
    def fail_once() -> list[ProgramSnapshot]:
        if len(source.times) == 2:
            raise ValueError("no snapshot")
        return [make_program(len(source.times))]

    source = Source(fail_once)
    with DashboardServer(source) as server, EventStream(server) as stream:
        assert stream.read_event() == ("message", [make_program(1)])
        assert stream.read_event() == ("message", [make_program(3)])


def test_an_unchanged_snapshot_is_sent_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "RESEND_SECONDS", 1.0)
    snapshot = make_program()
    source = Source(lambda: [snapshot])
    with DashboardServer(source) as server, EventStream(server) as stream:
        stream.read_event()
        first = time.monotonic()
        stream.read_event()
        assert time.monotonic() - first > 0.5


def test_a_browser_that_does_not_read_gets_only_the_latest_snapshots() -> None:
    source = Source(lambda: [make_program(len(source.times), n=LARGE_N)])
    with DashboardServer(source) as server, EventStream(server, receive_buffer=1 << 20) as stream:
        wait_until(lambda: len(source.times) > 4)
        n_calls = len(source.times)
        stream.read_event()
        event = stream.read_event()
        assert event is not None and event[1][0].n_finished_maps >= n_calls - 1


def test_a_browser_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "VIEWER_TIMEOUT", 0.3)
    source = Source(lambda: [make_program(n=LARGE_N)])
    with DashboardServer(source) as server, EventStream(server, receive_buffer=4096):
        assert source.was_called.wait(DEADLINE_SECONDS)
        wait_until(lambda: server.n_viewers == 0)


def test_a_browser_that_leaves_is_forgotten(server: DashboardServer) -> None:
    streams = [EventStream(server) for _ in range(3)]
    for stream in streams:
        stream.read_event()
    assert server.n_viewers == 3
    for stream in streams:
        stream.close()
    wait_until(lambda: server.n_viewers == 0)


def test_the_number_of_browsers_is_limited(server: DashboardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "MAX_VIEWERS", 1)
    with EventStream(server) as stream:
        stream.read_event()
        assert request(server, f"/events{query_of(server)}")[0] == 503
    wait_until(lambda: server.n_viewers == 0)
    with EventStream(server) as stream:
        assert stream.read_event() is not None


# --- the end -----------------------------------------------------------------------------------


def test_the_last_event_has_the_final_state(source: Source) -> None:
    server = DashboardServer(source, take_final_snapshots=lambda: [make_program(99)])
    server.start()
    with EventStream(server) as stream:
        stream.read_event()
        server.close()
        events = list(iter(stream.read_event, None))
    assert events[-1] == ("end", [make_program(99)])
    assert all(name == "message" for name, _ in events[:-1])


def find_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("polarmap-")}


def test_closing_ends_threads_and_connections_within_a_second() -> None:
    known_threads = find_threads()
    source = Source(lambda: [make_program(n=LARGE_N)])
    server = DashboardServer(source)
    server.start()
    with (
        EventStream(server, receive_buffer=4096),  # does not read
        socket.create_connection(("127.0.0.1", urlsplit(server.url).port)) as silent,  # sends nothing
        EventStream(server) as stream,
    ):
        wait_until(lambda: server.n_viewers == 2 and bool(source.times))
        started_at = time.monotonic()
        server.close()
        assert time.monotonic() - started_at < 1.0
        silent.settimeout(DEADLINE_SECONDS)
        assert silent.recv(1) == b""
        list(iter(stream.read_event, None))
    wait_until(lambda: find_threads() <= known_threads)
    with pytest.raises(ConnectionRefusedError):
        request(server)


def test_closing_does_not_wait_for_a_snapshot() -> None:
    may_return = threading.Event()
    source = Source(lambda: [make_program(may_return.wait(DEADLINE_SECONDS))])
    server = DashboardServer(source)
    server.start()
    with EventStream(server) as stream:
        assert source.was_called.wait(DEADLINE_SECONDS)
        started_at = time.monotonic()
        server.close()
        assert time.monotonic() - started_at < 1.0
        assert stream.read_event() == ("end", [])
    may_return.set()


def test_a_server_can_be_closed_twice_or_without_start(source: Source) -> None:
    server = DashboardServer(source)
    server.close()
    server.start()
    server.start()
    server.close()
    server.close()


def test_the_port_is_free_after_closing(source: Source) -> None:
    with DashboardServer(source) as server:
        port = urlsplit(server.url).port or 0
    with DashboardServer(source, port) as other:
        assert request(other, f"/{query_of(other)}")[0] == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_port(source: Source) -> None:
    with DashboardServer(source) as server:
        port = urlsplit(server.url).port or 0
        read_end, write_end = os.pipe()
        is_started, report_start = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Other threads must not hold locks.
            child = os.fork()
        if child == 0:
            os.write(report_start, b"x")
            os.read(read_end, 1)
            os._exit(0)
    try:
        os.read(is_started, 1)  # Until then, the child has not released the port.
        with DashboardServer(source, port) as other:
            assert request(other, f"/{query_of(other)}")[0] == 200
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)
        for end in (read_end, write_end, is_started, report_start):
            os.close(end)
