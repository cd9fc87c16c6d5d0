"""The folder of the feature cache: every damage is found, every writer is safe, the limit holds."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from prismatic.data import feature_cache_entry as entry
from prismatic.data.feature_cache import FeatureCache, FeatureCacheError
from prismatic.data.feature_cache_entry import DamagedEntryError, entry_bytes, read_entry, write_entry
from prismatic.data.feature_cache_notes import digest
from prismatic.data.feature_cache_size import CacheFullError
from prismatic.data.feature_cache_writer import FeatureWriter

SHAPE = (2, 3, 8)


def _features(number: int, shape: tuple[int, int, int] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the clip `number` has, and no other."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def _cache(root: Path, dtype: str = "float32", limit: int | None = None, **recipe: str) -> FeatureCache:
    cache = FeatureCache(root, dtype, limit)
    cache.bind({"encoder": "e", **recipe})
    return cache


@pytest.mark.parametrize("dtype", entry.DTYPES)
def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    cache = _cache(tmp_path, dtype)
    key = cache.key("content", [0, 3])
    assert cache.get(key) is None
    features = _features(1, dtype=cache.torch_dtype)
    assert cache.put(key, features) == entry_bytes(SHAPE, cache.torch_dtype)
    assert cache.put(key, features) == 0
    found = cache.get(key)
    assert found is not None and found.dtype == cache.torch_dtype and torch.equal(found, features)
    assert not list((tmp_path / "partial").iterdir()) and cache.size.usage() == (entry_bytes(*_of(features)), 1)


def _of(features: torch.Tensor) -> tuple[tuple[int, int, int], torch.dtype]:
    return tuple(features.shape), features.dtype  # type: ignore[return-value]


def test_a_flip_of_any_byte_is_found(tmp_path: Path) -> None:
    """Of the header and of the features alike: every byte of the file, one after the other."""
    key = digest("key")
    write_entry(tmp_path / "a", tmp_path / "b", key, _features(1))
    whole = (tmp_path / "a").read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(flipped)
        with pytest.raises(DamagedEntryError):
            read_entry(tmp_path / "a", key)


def test_a_file_cut_short_made_longer_or_renamed_is_found(tmp_path: Path) -> None:
    key = digest("key")
    path = tmp_path / "a"
    write_entry(path, tmp_path / "b", key, _features(1))
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:128], whole[:-1], whole + b"\0", whole + whole):
        path.write_bytes(content)
        with pytest.raises(DamagedEntryError):
            read_entry(path, key)
    path.write_bytes(whole)
    with pytest.raises(DamagedEntryError, match="another entry"):
        read_entry(path, digest("other key"))


def test_a_damaged_entry_is_removed_and_can_be_put_anew(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    key = cache.key("content")
    cache.put(key, _features(1))
    [path] = tmp_path.rglob("*.feat")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedEntryError, match=path.name):
        cache.get(key)
    assert cache.get(key) is None
    assert cache.put(key, _features(1)) > 0
    assert torch.equal(cache.get(key), _features(1)) and cache.size.usage()[1] == 1


def test_every_part_of_the_recipe_makes_another_key(tmp_path: Path) -> None:
    caches = [
        _cache(tmp_path),
        _cache(tmp_path, encoder="f"),
        _cache(tmp_path, resize_strategy="letterbox"),
        _cache(tmp_path, dtype="bfloat16"),
    ]
    keys = [cache.key("content", "pyav", [0, 1]) for cache in caches]
    keys += [caches[0].key("content 2", "pyav", [0, 1]), caches[0].key("content", "pyav", [0, 2])]
    keys += [caches[0].key("content", "decord", [0, 1])]
    assert len(set(keys)) == len(keys)
    assert len({cache.group for cache in caches}) == 4
    assert '"resize_strategy": "letterbox"' in (caches[2].group / "recipe.json").read_text()


def test_at_the_limit_nothing_is_added_and_all_that_is_there_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = entry_bytes(SHAPE, torch.float32)
    cache = _cache(tmp_path, limit=3 * size + 10)
    writer = FeatureWriter(cache)
    keys = [cache.key(str(number)) for number in range(5)]
    with caplog.at_level(logging.WARNING):
        writer.keep(keys, [_features(number) for number in range(5)])
        writer.flush()
    assert (writer.stored, writer.added, writer.refused) == (3, 3 * size, 2) and writer.full
    assert [cache.get(key) is not None for key in keys] == [True] * 3 + [False] * 2
    assert len(caplog.messages) == 1 and "--dataset.feature_cache_limit" in caplog.text
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.feat")) <= cache.limit


def test_at_the_limit_the_files_are_counted_anew(tmp_path: Path) -> None:
    """A writer that was killed has taken room for a file that never came; so has a group that somebody deleted."""
    size = entry_bytes(SHAPE, torch.float32)
    cache = _cache(tmp_path, limit=2 * size)
    cache.size.reserve(2 * size)
    assert cache.put(cache.key("a"), _features(1)) == size
    assert cache.put(cache.key("b"), _features(2)) == size
    with pytest.raises(CacheFullError):
        cache.put(cache.key("c"), _features(3))


def test_features_that_the_precision_cannot_hold_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = _cache(tmp_path, "float16")
    writer = FeatureWriter(cache)
    with caplog.at_level(logging.WARNING):
        writer.keep([cache.key("a"), cache.key("b")], [torch.full(SHAPE, 1e6), torch.ones(SHAPE)])
        writer.flush()
    assert cache.get(cache.key("a")) is None and cache.get(cache.key("b")) is not None
    assert "float16 cannot hold" in caplog.text


def test_a_full_disk_never_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path)
    writer = FeatureWriter(cache)
    calls = []

    def write(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entry.os, "write", write)
    with caplog.at_level(logging.WARNING):
        writer.keep([cache.key(name) for name in "abc"], [_features(1)] * 3)
        writer.flush()
    monkeypatch.undo()
    assert len(calls) == 1 and writer.refused == 3 and writer.full
    assert "No space left" in caplog.text and len(caplog.messages) == 1
    assert not list((tmp_path / "partial").iterdir()) and cache.size.usage() == (0, 0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FeatureCacheError, match=r"--dataset.feature_cache .* cannot be made"):
        FeatureCache(tmp_path / "file" / "cache")


def test_what_killed_writers_left_goes_after_an_hour(tmp_path: Path) -> None:
    _cache(tmp_path)
    for name, age in (("old", 7200), ("new", 60)):
        (tmp_path / "partial" / name).write_text("x")
        os.utime(tmp_path / "partial" / name, (time.time() - age,) * 2)
    _cache(tmp_path)
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["new"]


# --- killed, and together ---

BIG = (4, 64, 64)


def _build(root: Path, numbers: range) -> None:
    cache = _cache(root)
    for number in numbers:
        cache.put(cache.key(str(number)), _features(number, BIG))


def _fork(root: Path, numbers: range) -> int:
    child = os.fork()
    if child == 0:
        try:
            _build(root, numbers)
        finally:
            os._exit(0)
    return child


def _nothing_wrong(root: Path, count: int) -> int:
    """Every entry that can be found is the right one. Returns how many there are."""
    cache = _cache(root)
    found = 0
    for number in range(count):
        features = cache.get(cache.key(str(number)))  # raises for a damaged one
        if features is not None:
            assert torch.equal(features, _features(number, BIG))
            found += 1
    return found


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_minus_nine_while_building_serves_nothing_wrong(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    torch.set_num_threads(1)
    cut = 0
    for kill in range(kills):
        root = tmp_path / str(kill)
        child = _fork(root, range(400))
        begun, enough = time.monotonic(), rng.randrange(1, 250)
        while len(list(root.rglob("*.feat"))) < enough and time.monotonic() - begun < 30:
            time.sleep(rng.uniform(0, 0.003))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = _nothing_wrong(root, 400)
        cut += 0 < found < 400
        _build(root, range(400))
        assert _nothing_wrong(root, 400) == 400
        assert FeatureCache(root).size.usage()[1] in (400, 401)  # at most the file that was being written is too much
    assert cut >= kills // 2, "the kills came too early or too late to mean anything"


def test_two_builders_at_once_are_safe(tmp_path: Path) -> None:
    children = [_fork(tmp_path, range(150)), _fork(tmp_path, range(149, -1, -1))]
    while _nothing_wrong(tmp_path, 150) < 150:  # a reader beside them
        time.sleep(0.01)
    for child in children:
        os.waitpid(child, 0)
    assert _nothing_wrong(tmp_path, 150) == 150 and not list((tmp_path / "partial").iterdir())


def test_threads_of_one_process_do_not_mix_their_files(tmp_path: Path) -> None:
    threads = [threading.Thread(target=_build, args=(tmp_path, range(60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _nothing_wrong(tmp_path, 60) == 60
