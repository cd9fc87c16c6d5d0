"""The demo over HTTP: what is served, to whom, and how much is taken in."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prismatic.demo.app import App
from prismatic.demo.server import STATIC, PageServer
from tests.audit import watched


class Browser:
    """One visitor."""

    def __init__(self, port: int) -> None:
        self.port, self.token = port, ""
        self.info = self.post("enter")
        self.token = self.info["token"]

    def call(
        self, method: str, path: str, data: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"X-Visitor": self.token, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, data, sent)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return reply.status, dict(reply.headers), body

    def post(self, request: str, expect: int = 200, **body: Any) -> dict[str, Any]:
        """A request that is answered at once."""
        status, _, data = self.call("POST", f"/api/{request}", json.dumps(body).encode())
        assert status == expect, data
        return json.loads(data)

    def stream(self, request: str, **body: Any) -> list[dict[str, Any]]:
        """A request that the model answers."""
        status, headers, data = self.call("POST", f"/api/{request}", json.dumps(body).encode())
        assert (status, headers["Content-Type"]) == (200, "application/x-ndjson"), data
        return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def server(app: App) -> Iterator[PageServer]:
    server = PageServer("127.0.0.1", 0)
    server.app = app
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def browse(server: PageServer) -> Callable[[], Browser]:
    return lambda: Browser(server.server_port)


def test_a_visit(browse: Callable[[], Browser], tiny_clip: Path) -> None:
    browser = browse()
    assert browser.info["model"] == "tiny" and browser.info["settings"]["num_frames"] == 4 and browser.info["shelf"]
    status, _, data = browser.call("PUT", "/api/upload?name=my%20clip.mp4", tiny_clip.read_bytes())
    assert (status, json.loads(data)) == (200, {"name": "my clip.mp4"})
    seen = browser.stream("see", settings={"num_frames": 3})[-1]
    assert len(seen["frames"]) == 3 and seen["tokens"] > 0
    assert browser.call("GET", "/api/clip")[2] == tiny_clip.read_bytes()
    first = browser.stream("ask", question="What is it?")[-1]
    second = browser.stream("ask", question="And then?", settings={"max_new_tokens": 2})[-1]
    assert "answer" in first and "answer" in second
    assert len(browser.stream("weigh", question="Is it?", choices=["yes", "no"])[-1]["shares"]) == 2
    browser.post("restart")
    assert browser.stream("ask", question="What is it?")[-1]["answer"] == first["answer"]
    browser.post("leave")
    assert "reload" in browser.post("restart", expect=410)["error"]


def test_visitors_have_conversations_of_their_own(browse: Callable[[], Browser], server: PageServer) -> None:
    browsers = [browse() for _ in range(3)]
    answers: dict[int, list[str]] = {}

    def visit(index: int, browser: Browser) -> None:
        browser.post("choose", path="clip.mp4")
        settings = {"num_frames": index + 1}
        answers[index] = [browser.stream("ask", question=q, settings=settings)[-1]["answer"] for q in ("What?", "And?")]

    threads = [threading.Thread(target=visit, args=pair) for pair in enumerate(browsers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, browser in enumerate(browsers):
        conversation = server.app.visitors.find(browser.token).conversation
        assert [turn.text for turn in conversation.builder.turns[1::2]] == answers[index]
        browser.post("restart")
        alone = browser.stream("ask", question="What?", settings={"num_frames": index + 1})[-1]["answer"]
        assert alone == answers[index][0]


def test_files_of_the_folder(browse: Callable[[], Browser]) -> None:
    browser = browse()
    assert browser.post("files", folder="")["files"] == ["clip.mp4"]
    assert browser.post("choose", path="deep/frames") == {"name": "frames"}
    assert len(browser.stream("see", settings={"num_frames": 2})[-1]["frames"]) == 2
    assert "no file to play" in json.loads(browser.call("GET", "/api/clip")[2])["error"]
    for path in ("link.mp4", "../outside/secret.mp4", "/etc/passwd"):
        assert "is not below" in browser.post("choose", 400, path=path)["error"]


def test_a_broken_video_is_named_as_the_visitor_knows_it(browse: Callable[[], Browser]) -> None:
    browser = browse()
    # A playlist, which could have FFmpeg open other files.
    browser.call("PUT", "/api/upload?name=holiday.mp4", b"#EXTM3U\nfile:///etc/passwd\n")
    with watched() as opened:
        error = browser.stream("see")[-1]["error"]
    assert error.startswith("holiday.mp4: ") and "prismatic-demo" not in error
    assert "/etc/passwd" not in opened
    assert "error" in browser.stream("ask", question="What?")[-1]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/../../etc/passwd", "/page.js/../app.py", "/app.py", "/%2e%2e/pyproject.toml", "//etc/passwd"],
)
def test_no_path_of_a_request_is_a_path_of_a_file(browse: Callable[[], Browser], path: str) -> None:
    assert browse().call("GET", path)[0] == 404
    assert browse().call("PUT", path, b"x")[0] == 404


def test_the_page_comes_from_here_alone(browse: Callable[[], Browser]) -> None:
    browser = browse()
    for path, (_, kind) in STATIC.items():
        status, headers, data = browser.call("GET", path)
        assert status == 200 and headers["Content-Type"] == kind and data
        assert b"http:" not in data and b"https:" not in data
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_other_sites_may_not_ask(browse: Callable[[], Browser]) -> None:
    browser = browse()
    assert browser.call("POST", "/api/enter", b"{}", Origin="http://elsewhere.example")[0] == 403
    assert browser.call("GET", "/", Host="elsewhere.example")[0] == 403
    # As through a forwarded port.
    own = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    assert browser.call("POST", "/api/enter", b"{}", **own)[0] == 200


def test_requests_that_make_no_sense(browse: Callable[[], Browser]) -> None:
    browser = browse()
    status, _, data = browser.call("PUT", "/api/upload?name=a.mp4", b"x" * (8 << 20))
    assert status == 413 and "8 MB are more than the 1 MB" in json.loads(data)["error"]
    assert browser.call("POST", "/api/ask", b"[" * 100_000)[0] == 400
    assert browser.call("POST", "/api/ask", b"[]")[0] == 400
    assert browser.call("POST", "/api/nothing", b"{}")[0] == 404
    assert browser.call("POST", "/api/ask", b"{}")[0] == 400
    assert browser.call("POST", "/api/ask", b"{}", X_Visitor="nobody")[0] == 410
    assert "must be a list" in browser.post("weigh", 400, question="What?", choices="ab")["error"]
    assert "no image or video yet" in browser.stream("ask", question="What?")[-1]["error"]
    browser.post("choose", path="clip.mp4")
    assert "question is empty" in browser.stream("ask", question=" ")[-1]["error"]
    assert "at most" in browser.post("see", 400, settings={"num_frames": 999})["error"]


def test_one_request_of_a_visitor_at_a_time(browse: Callable[[], Browser], server: PageServer) -> None:
    browser = browse()
    browser.post("choose", path="clip.mp4")
    with server.app.visitors.find(browser.token).alone():
        assert "still being answered" in browser.post("restart", 409)["error"]
        assert "still being answered" in browser.post("ask", 409, question="What?")["error"]
        assert browser.call("PUT", "/api/upload?name=a.mp4", b"x")[0] == 409
    browser.post("restart")


def test_who_goes_away_stops_the_model(browse: Callable[[], Browser], server: PageServer) -> None:
    browser, stopped = browse(), threading.Event()

    def work(job: Any) -> None:
        if job.stop.wait(20):
            stopped.set()

    server.app.requests["POST /api/see"] = lambda visitor, body: server.app._events(visitor, work)
    connection = http.client.HTTPConnection("127.0.0.1", browser.port)
    connection.request("POST", "/api/see", b"{}", {"X-Visitor": browser.token})
    connection.getresponse().close()
    connection.close()
    assert stopped.wait(10)


def test_stop_ends_the_call(browse: Callable[[], Browser], server: PageServer) -> None:
    browser, begun = browse(), threading.Event()

    def work(job: Any) -> None:
        begun.set()
        job.tell(answer="", stopped=job.stop.wait(20))

    server.app.requests["POST /api/see"] = lambda visitor, body: server.app._events(visitor, work)
    threading.Thread(target=lambda: begun.wait(10) and browser.post("stop")).start()
    assert browser.stream("see")[-1] == {"answer": "", "stopped": True}


def test_a_port_that_is_taken_gives_way(server: PageServer) -> None:
    other = PageServer("127.0.0.1", server.server_port)
    assert other.server_port != server.server_port and str(other.server_port) in other.address
    other.server_close()
    with pytest.raises(ValueError, match="--host"):
        PageServer("203.0.113.1", 0)


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_end_it_and_delete_the_uploads(app: App, ending: signal.Signals, code: int) -> None:
    app.visitors.enter().receive(io.BytesIO(b"abc"), 3, "a.mp4")
    uploads = Path(app.visitors._uploads.name)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    server = PageServer("127.0.0.1", 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
    threading.Timer(0.3, os.kill, (os.getpid(), ending)).start()
    try:
        assert server.serve(app) == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not uploads.exists()


def test_without_a_folder_nothing_can_be_chosen(tiny_vlm: Any) -> None:
    from prismatic.conf.demo import DemoConfig

    app = App(tiny_vlm, DemoConfig(model_path="x"))
    assert not app.enter()["shelf"]
    visitor = app.visitors.enter()
    for call in (app.choose, app.files):
        with pytest.raises(ValueError, match="--media_root"):
            call(visitor, {"path": "a.mp4", "folder": ""})
    assert app.close(5.0)
