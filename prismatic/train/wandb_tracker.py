"""Metrics to Weights & Biases, from a thread of its own: the training loop never waits for it."""

from __future__ import annotations

import http.client
import logging
import netrc
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0  # How long the end of a run waits for the upload
UNREACHABLE_SECONDS = 0.8  # The same when the service does not answer, and how long that may take to find out
INIT_SECONDS = 15.0  # How long the service may take to answer before the run is recorded offline
ID_FILE = "wandb-id.txt"  # In the run folder: a run that goes on is the same run there
QUEUE_ROWS = 10_000


class WandbTracker:
    """Records a run with wandb: online with credentials, else offline (`wandb sync` uploads it later).

    No failure of wandb stops or delays a run; it is a warning, and the jsonl files have everything.
    """

    def __init__(self, run_dir: Path, run_id: str, hparams: dict[str, Any], project: str, entity: str | None) -> None:
        self._rows: queue.Queue[tuple[dict[str, Any], int] | None] = queue.Queue(QUEUE_ROWS)
        self._dropped = 0
        self._settings = {"dir": str(run_dir), "name": run_id, "config": hparams, "project": project, "entity": entity}
        # Rows of steps that were done twice are the same, and wandb keeps the first of them.
        self._settings |= {"id": _wandb_id(run_dir), "resume": "allow"}
        self._online = False
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
        down = self._online and not _answers(UNREACHABLE_SECONDS)
        allowed = UNREACHABLE_SECONDS if down else CLOSE_SECONDS
        self._thread.join(max(0.0, allowed - (time.monotonic() - began)))
        if self._thread.is_alive():
            why = "does not answer" if down else f"is still at work after {CLOSE_SECONDS:.0f} s"
            log.warning(f"wandb {why} and is left behind; jsonl files are complete")
        if self._dropped:
            log.warning(f"wandb was too slow for {self._dropped} rows (the jsonl files are complete)")

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
        if not mode and not _has_credentials():
            log.info(f"wandb: no credentials, so the run is recorded offline in {self._settings['dir']}/wandb")
            mode = "offline"
        self._online = mode in (None, "", "online")
        if self._online and not _answers(INIT_SECONDS):
            log.warning(f"wandb does not answer; recording offline in {self._settings['dir']}/wandb")
            mode = "offline"
        try:
            return wandb.init(**self._settings, mode=mode, settings=settings)
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            log.warning(f"wandb could not start ({error}); recording offline in {self._settings['dir']}/wandb")
            return wandb.init(**self._settings, mode="offline", settings=settings)


def _has_credentials() -> bool:
    """Whether there is a key: in the environment, or where `wandb login` leaves it. Nobody is asked or sent to."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(_service()).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _service() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _wandb_id(run_dir: Path) -> str:
    path, new = run_dir / ID_FILE, uuid.uuid4().hex[:12]
    try:
        if not path.is_file():
            path.write_text(f"{new}\n", encoding="ascii")
        return path.read_text(encoding="ascii").strip() or new
    except OSError as error:
        log.warning(f"Could not write {path} ({error.strerror}): a run that goes on from here is another run in wandb")
        return new


def _answers(seconds: float) -> bool:
    """Whether wandb's service says anything within that time, through a proxy if one is set."""
    answered = threading.Event()

    def ask() -> None:
        # Only an answer tells: a proxy, or a machine behind which nothing works, takes connections too.
        try:
            urllib.request.urlopen(urllib.request.Request(_service(), method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError as error:
            if error.code in (502, 503, 504):  # a gateway, in the place of a service that is gone
                return
        except (OSError, ValueError, http.client.HTTPException):
            return
        answered.set()

    # A thread, because nothing limits the time that the look-up of a name may take.
    asking = threading.Thread(target=ask, name="wandb-answers", daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()
