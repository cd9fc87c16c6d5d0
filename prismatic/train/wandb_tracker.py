"""Metrics to Weights & Biases, from a thread of its own: the training loop never waits for it."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0  # How long the end of a run waits for the upload to a service that answers
DOWN_SECONDS = 1.0  # and for one that has not answered yet
PROBE_SECONDS = 3.0  # How long a connection may take before the service counts as unreachable
INIT_SECONDS = 15.0  # How long the service may take to answer before the run is recorded offline
QUEUE_ROWS = 10_000


class WandbTracker:
    """Records a run with wandb: online with credentials, else offline (`wandb sync` uploads it later).

    No failure of wandb stops or delays a run; it is a warning, and the jsonl files have everything.
    """

    def __init__(self, run_dir: Path, run_id: str, hparams: dict[str, Any], project: str, entity: str | None) -> None:
        self._rows: queue.Queue[tuple[dict[str, Any], int] | None] = queue.Queue(QUEUE_ROWS)
        self._dropped = 0
        self._asking = threading.Event()  # the service, which may not answer
        self._settings = {"dir": str(run_dir), "name": run_id, "config": hparams, "project": project, "entity": entity}
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any], step: int) -> None:
        """Hand over one row; returns at once."""
        try:
            self._rows.put_nowait((row, step))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Wait a little for what is under way."""
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            self._dropped += 1
        began = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - began < self._patience():
            self._thread.join(0.1)
        if self._thread.is_alive():
            log.warning(
                f"wandb is still at work after {self._patience():.0f} s and left behind; jsonl files are complete"
            )
        if self._dropped:
            log.warning(f"wandb was too slow for {self._dropped} rows (the jsonl files are complete)")

    def _patience(self) -> float:
        return DOWN_SECONDS if self._asking.is_set() else CLOSE_SECONDS

    def _work(self) -> None:
        run = None
        try:
            import wandb

            run = self._init(wandb)
            while (item := self._rows.get()) is not None:
                run.log(item[0], step=item[1])
            run.finish()
        except Exception as error:  # noqa: BLE001  a tracker of any version must not end a run; it is said once
            log.warning(f"wandb stopped recording ({type(error).__name__}: {error}); the jsonl files have everything")

    def _init(self, wandb: Any) -> Any:
        settings = wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off")
        mode = os.environ.get("WANDB_MODE")
        if not mode and not wandb.api.api_key:
            log.info(f"wandb: no credentials, so the run is recorded offline in {self._settings['dir']}/wandb")
            mode = "offline"
        # Its own attempts go on for minutes, and so does its exit.
        if mode in (None, "", "online") and not self._answers(wandb.setup().settings.base_url):
            log.warning(
                f"wandb cannot be reached; recording offline in {self._settings['dir']}/wandb (`wandb sync` it)"
            )
            mode = "offline"
        try:
            if mode != "offline":
                self._asking.set()
            return wandb.init(**self._settings, mode=mode, settings=settings)
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            log.warning(f"wandb could not start ({error}); recording offline in {self._settings['dir']}/wandb")
            self._asking.clear()
            return wandb.init(**self._settings, mode="offline", settings=settings)
        finally:
            self._asking.clear()

    def _answers(self, url: str) -> bool:
        self._asking.set()
        try:
            return reachable(url, PROBE_SECONDS)
        finally:
            self._asking.clear()


def reachable(url: str, seconds: float) -> bool:
    """Whether something takes connections at the host of a URL, or at the proxy that leads there."""
    parts = urllib.parse.urlsplit(url)
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.request.getproxies().get(parts.scheme)
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else parts
    try:
        address = (parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443))
        with socket.create_connection(address, timeout=seconds):
            return True
    except (OSError, ValueError):
        return False
