"""`scripts/demo.py` as a process: where it listens, what it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scripts.conftest import command, script_environment


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start a demo: the process, and the address that it prints."""
    running = []
    (tmp_path / "tmp").mkdir()

    def start(*args: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            command("demo.py", *args),
            env={**script_environment(), "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background of a shell does without Ctrl-C, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(process)
        for line in process.stdout:
            if " is the page" in line:
                return process, line.split()[0]
        pytest.fail(process.stderr.read()[-2000:])

    yield start
    for process in running:
        process.kill()
        process.communicate()


def _post(address: str, path: str, token: str, body: dict[str, object]) -> bytes:
    request = urllib.request.Request(f"{address}api/{path}", json.dumps(body).encode(), {"X-Visitor": token})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read()


def test_a_visit_beside_a_taken_port(
    trained: Path, data_root: Path, tmp_path: Path, started: Callable[..., tuple]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process, address = started("--model_path", str(trained), "--device", "cpu", "--port", port)
        assert f":{port}/" not in address
    token = json.loads(_post(address, "enter", "", {}))["token"]
    clip = next((data_root / "moving-shapes").rglob("*.mp4"))
    upload = urllib.request.Request(
        f"{address}api/upload?name=a.mp4", clip.read_bytes(), {"X-Visitor": token}, method="PUT"
    )
    with urllib.request.urlopen(upload, timeout=60) as reply:
        assert json.loads(reply.read()) == {"name": "a.mp4"}
    events = _post(address, "ask", token, {"question": "What moves?", "settings": {"max_new_tokens": 6}}).splitlines()
    assert "answer" in json.loads(events[-1])
    assert list((tmp_path / "tmp").glob("prismatic-demo-*/*/*.mp4"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in errors
    assert not list((tmp_path / "tmp").glob("prismatic-demo-*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model_path is needed"),
        (["--model_path", "no/such.pt"], "no/such.pt"),
        (["--model_path", "x", "--media_root", "no/such/folder"], "--media_root no/such/folder is no folder"),
        (["--model_path", "x", "--port", "70000"], "--port must be 0 to 65535"),
        (["--model_path", "x", "--num_frames", "0"], "--num_frames must be at least 1"),
        (["--model_path", "x", "--max_upload_mb", "0"], "--max_upload_mb must be at least 1"),
        (["--model_path", "x", "--sampler", "unifrom"], "did you mean 'uniform'"),
        (["--model_path", "x", "--host", "203.0.113.1"], "--host 203.0.113.1"),
        (["--model_path", "x", "--share", "true"], "unknown flag --share"),
    ],
)
def test_bad_input(flags: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused("demo.py", *flags)
