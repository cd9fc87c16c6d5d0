"""The engine `ray`: batches as rows of a Ray Dataset, mapped by Ray Data's tasks on the machines of a cluster.

Placement, retries and lost machines are Ray's business. Tasks are stateless for Ray: one that a lost machine took with
it runs again elsewhere. What is dear to make (processes, a model) is kept between the tasks of a Ray process.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prismatic.webvid.pool import Pool

if TYPE_CHECKING:
    from prismatic.webvid.engine import Batches, Job, Workers

log = logging.getLogger(__name__)

WINDOW = 2048
"""Batches of one Ray Dataset: bounds what the driver holds, and how long a result waits until it is written down."""

CONNECT_SECONDS = 10.0

_kept: dict[bytes, tuple[Any, Pool]] = {}
"""In a Ray process: pickled (job, workers) -> the job with what it made, and its reading processes."""


def run(job: Job, batches: Batches, workers: Workers) -> Iterator[tuple[Sequence[Any], Any]]:
    """(batch, result) of each batch, as they are done. Raises ValueError when Ray is missing or cannot be reached."""
    _connect(workers)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    packed_job = pickle.dumps((job, workers))
    options: dict[str, Any] = {"num_cpus": workers.num_workers, **({"num_gpus": 1} if workers.gpus else {})}
    source = iter(batches)
    while window := list(itertools.islice(source, WINDOW)):
        rows = [{"place": place, "batch": pickle.dumps(batch)} for place, batch in enumerate(window)]
        # One block a row, so that rows spread over the cluster and are retried one by one.
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = data.map_batches(
            _map, batch_size=1, batch_format="numpy", fn_kwargs={"packed_job": packed_job}, **options
        )
        for row in done.iter_rows():
            yield window[int(row["place"])], pickle.loads(row["result"])


def _connect(workers: Workers) -> None:
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray: pip install 'prismatic[ray]' (or use --engine local)") from error
    if not ray.is_initialized():
        host, _, port = workers.address.removeprefix("ray://").rpartition(":")
        try:
            if host and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            ray.init(address=workers.address or None, logging_level=logging.WARNING, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"--address {workers.address}: no Ray cluster there ({error})") from error


def _map(rows: dict[str, Any], packed_job: bytes) -> dict[str, Any]:
    """One batch, in a Ray process."""
    import numpy as np

    if packed_job not in _kept:
        for _, pool in _kept.values():
            pool.close()
        _kept.clear()
        job, workers = pickle.loads(packed_job)
        _kept[packed_job] = (job, Pool(job.read, workers.num_workers, workers.timeout))
    job, pool = _kept[packed_job]
    batch = pickle.loads(rows["batch"][0])
    result = np.empty(1, object)
    result[0] = pickle.dumps(job.finish(batch, pool.imap(batch)))
    return {"place": rows["place"], "result": result}
