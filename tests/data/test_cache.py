"""Packs of prepared arrays: round trips, lookups, concurrent writers and interruptions."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import StoreError
from harness.core.types import Array
from harness.data import cache as cache_module
from harness.data.cache import ArrayCache, CachedImage, Coding, Digests

RNG = np.random.default_rng(0)
MASK = RNG.random((5, 6, 7)) < 0.3
ARRAYS: Mapping[str, tuple[Array, Coding]] = {
    "float": (RNG.random((5, 6, 7), np.float32), "dense"),
    "bool": (MASK, "dense"),
    "labels": (RNG.integers(-3, 9, (4, 3, 2), np.int32), "dense"),
    "picture": (RNG.integers(0, 256, (9, 5, 3), np.uint8), "dense"),
    "Fortran order": (np.asfortranarray(RNG.random((3, 4, 5))), "dense"),
    "part of an array": (RNG.random((6, 8, 4))[::2, 1:5, ::-1], "dense"),
    "no voxels": (np.zeros((0, 3), np.float32), "dense"),
    "scalar": (np.array(2.5), "dense"),
    "binary runs": (MASK.astype(np.float32), "runs"),
    "fractions in runs": (MASK * RNG.random((5, 6, 7), np.float32), "runs"),
    "bool in runs": (MASK, "runs"),
    "empty runs": (np.zeros((3, 4, 5), np.float32), "runs"),
    "full runs": (np.ones((3, 4, 5), np.float32), "runs"),
}


def add(folder: Path, arrays: Mapping[str, tuple[Array, Coding]]) -> dict[str, CachedImage]:
    """Add arrays in one preparation."""
    with ArrayCache(folder) as cache:
        return {key: cache.add(key, array, coding=coding) for key, (array, coding) in arrays.items()}


def found(folder: Path) -> dict[str, CachedImage]:
    """Entries of ``ARRAYS`` that a new process finds in a folder."""
    with ArrayCache(folder) as cache:
        return {key: image for key in ARRAYS if (image := cache.known(key))}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, CachedImage]:
    """All arrays in one pack."""
    return add(tmp_path, ARRAYS)


@pytest.mark.parametrize("key", ARRAYS)
def test_arrays_are_stored_exactly(stored: dict[str, CachedImage], key: str) -> None:
    """Values, dtype and shape are unchanged for every kind of array."""
    array, _ = ARRAYS[key]
    loaded = stored[key].load()
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape) == (stored[key].dtype, stored[key].shape)
    np.testing.assert_array_equal(loaded, array)
    stored[key].check()


@pytest.mark.parametrize("key", ARRAYS)
def test_voxels_are_the_non_zero_values(stored: dict[str, CachedImage], key: str) -> None:
    """Sorted flat indices and values, for dense arrays and for runs."""
    array = np.ravel(ARRAYS[key][0])
    voxels, values = stored[key].voxels()
    np.testing.assert_array_equal(voxels, np.flatnonzero(array))
    np.testing.assert_array_equal(values, array[array != 0])
    assert (voxels.dtype, values.dtype) == (np.int64, array.dtype)


def test_later_preparation_finds_the_same_images(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """The index holds everything that ``add`` returned."""
    assert found(tmp_path) == stored


def test_an_unknown_key_is_not_found(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """``None`` means that the array must be prepared."""
    with ArrayCache(tmp_path) as cache:
        assert cache.known("other") is None


def test_images_can_be_pickled(stored: dict[str, CachedImage]) -> None:
    """Workers receive the location of an array, not its values."""
    assert pickle.loads(pickle.dumps(stored)) == stored


def test_runs_of_a_mask_are_small(tmp_path: Path) -> None:
    """A block of 30³ voxels in 100³ takes the 900 starts and lengths of its runs."""
    array = np.zeros((100, 100, 100), np.float32)
    array[30:60, 30:60, 30:60] = 1
    image = add(tmp_path, {"key": (array, "runs")})["key"]
    assert image.path.stat().st_size == image.length == 4 * (1 + 2 * 900)


def test_one_preparation_writes_two_files(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """A binary file and its index, however many arrays there are."""
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".jsonl"]
    assert len(next(tmp_path.glob("*.jsonl")).read_text().splitlines()) == len(stored)


def test_arrays_are_aligned(stored: dict[str, CachedImage]) -> None:
    """Every array starts at a multiple of 64 bytes."""
    assert [image.offset % 64 for image in stored.values()] == [0] * len(stored)


@pytest.mark.parametrize("small", [0, 2**18])
def test_large_arrays_are_mapped_and_small_ones_are_read(
    stored: dict[str, CachedImage], monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Mapped arrays share memory; neither can be written to, and both are exact."""
    monkeypatch.setattr(cache_module, "_SMALL", small)
    loaded = stored["float"].load()
    assert np.shares_memory(loaded, stored["float"].load()) is (small == 0)
    with pytest.raises(ValueError, match="read-only"):
        loaded[0, 0, 0] = 1
    for key, (array, _) in ARRAYS.items():
        np.testing.assert_array_equal(stored[key].load(), array)


def test_files_of_small_arrays_are_closed_when_unused(stored: dict[str, CachedImage]) -> None:
    """They stay open between readings, but not for ever."""
    stored["float"].load()
    opened = cache_module._opened(*_place(stored["float"].path))
    cache_module._opened.cache_clear()
    number = opened.descriptor
    os.fstat(number)
    del opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def _place(path: Path) -> tuple[Path, int, int]:
    facts = path.stat()
    return path, facts.st_dev, facts.st_ino


def test_a_pack_that_is_replaced_is_opened_again(stored: dict[str, CachedImage]) -> None:
    """Files are known by their inode."""
    image = stored["float"]
    before = image.load()
    copy = image.path.with_suffix(".copy")
    copy.write_bytes(bytes(image.path.stat().st_size))
    copy.replace(image.path)
    assert before.any() and not image.load().any()


def test_a_later_preparation_adds_only_what_is_missing(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """The earlier pack is untouched, and the new one holds the new array alone."""
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    images = add(tmp_path, {**ARRAYS, "new": (MASK, "dense")})
    assert {key: images[key] for key in ARRAYS} == stored
    assert {path: path.read_bytes() for path in before} == before
    (index,) = [path for path in tmp_path.glob("*.jsonl") if path not in before]
    assert [json.loads(line)["key"] for line in index.read_text().splitlines()] == ["new"]


def test_nothing_is_written_if_nothing_is_added(tmp_path: Path) -> None:
    """Looking up creates neither a folder nor an empty pack."""
    with ArrayCache(tmp_path / "arrays") as cache:
        assert cache.known("key") is None
    assert not (tmp_path / "arrays").exists()


def test_a_preparation_that_fails_keeps_what_it_added(tmp_path: Path) -> None:
    """Only the array that could not be prepared is missing."""
    with pytest.raises(KeyError, match="no image"), ArrayCache(tmp_path) as cache:
        cache.add("float", ARRAYS["float"][0])
        raise KeyError("no image")
    assert list(found(tmp_path)) == ["float"]


def test_objects_are_refused(tmp_path: Path) -> None:
    """Arrays of dtype object would be stored as addresses."""
    with ArrayCache(tmp_path) as cache, pytest.raises(StoreError, match="must hold numbers, got dtype object for key"):
        cache.add("key", np.array([None]))
    assert not list(tmp_path.iterdir())


def test_an_incomplete_last_line_is_ignored(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """Its array is missing, and all others are found."""
    index = next(tmp_path.glob("*.jsonl"))
    index.write_bytes(index.read_bytes()[:-1])
    *complete, last = stored
    assert found(tmp_path) == {key: stored[key] for key in complete}
    assert add(tmp_path, ARRAYS)[last].path != stored[last].path
    assert found(tmp_path).keys() == stored.keys()


def test_a_line_that_cannot_be_read_is_ignored(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """Text, other JSON or an unknown coding does not affect the other lines."""
    index = next(tmp_path.glob("*.jsonl"))
    first, *rest = index.read_text().splitlines()
    other = first.replace('"key": "float"', '"key": "bool"').replace('"dense"', '"zip"')
    index.write_text("\n".join(["{", "[1]", "{}", other, *rest]) + "\n")
    assert found(tmp_path) == {key: image for key, image in stored.items() if key != "float"}


def test_arrays_beyond_the_end_of_the_file_are_ignored(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """A truncated file still gives the arrays before the end."""
    image = stored["binary runs"]
    with image.path.open("r+b") as file:
        file.truncate(image.offset + image.length - 1)
    assert list(found(tmp_path)) == list(ARRAYS)[: list(ARRAYS).index("binary runs")]


def test_an_index_without_its_data_is_ignored(stored: dict[str, CachedImage], tmp_path: Path) -> None:
    """Deleting a binary file is enough to have its arrays prepared again."""
    stored["float"].path.unlink()
    assert found(tmp_path) == {}
    assert found(tmp_path) != add(tmp_path, ARRAYS) == found(tmp_path)


@pytest.mark.parametrize("access", [CachedImage.load, CachedImage.voxels, CachedImage.check, CachedImage.touch])
@pytest.mark.parametrize("key", ["float", "fractions in runs", "no voxels"])
def test_a_missing_file_is_an_error(
    stored: dict[str, CachedImage], key: str, access: Callable[[CachedImage], Any]
) -> None:
    """The message names the file and what to do."""
    stored[key].path.unlink()
    with pytest.raises(StoreError, match=rf"missing: {stored[key].path}. Run the command on the original data again"):
        access(stored[key])


@pytest.mark.parametrize("access", [CachedImage.load, CachedImage.voxels, CachedImage.check, CachedImage.touch])
@pytest.mark.parametrize("key", ["float", "fractions in runs"])
def test_a_truncated_file_is_an_error(
    stored: dict[str, CachedImage], key: str, access: Callable[[CachedImage], Any]
) -> None:
    """The message names the size that the file must have."""
    image = stored[key]
    end = image.offset + image.length
    with image.path.open("r+b") as file:
        file.truncate(end - 1)
    with pytest.raises(StoreError, match=rf"at least {end} bytes: {image.path} has {end - 1}. Run the command"):
        access(image)


@pytest.mark.parametrize("key", ["float", "bool", "fractions in runs"])
def test_a_changed_byte_is_found_by_the_checksum(stored: dict[str, CachedImage], key: str) -> None:
    """The check fails for that image and passes for all others."""
    image = stored[key]
    with image.path.open("r+b") as file:
        file.seek(image.offset + image.length - 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(StoreError, match=rf"checksum: {image.path}, bytes {image.offset} to .*Delete the file"):
        image.check()
    for name, other in stored.items():
        if name != key:
            other.check()


def test_threads_share_one_pack(tmp_path: Path) -> None:
    """Every array is stored once, even if several threads add the same key."""
    arrays = [np.full((50, number + 1), number, np.int16) for number in range(40)]
    start = threading.Barrier(4)

    def add_all(cache: ArrayCache) -> list[CachedImage]:
        start.wait()
        return [cache.add(str(number), array) for number, array in enumerate(arrays)]

    with ArrayCache(tmp_path) as cache, ThreadPoolExecutor(4) as threads:
        made = list(threads.map(add_all, [cache] * 4))
    assert made[0] == made[1] == made[2] == made[3]
    assert len(next(tmp_path.glob("*.jsonl")).read_text().splitlines()) == len(arrays)
    for image, array in zip(made[0], arrays, strict=True):
        np.testing.assert_array_equal(image.load(), array)


def _add_some(folder: Path, numbers: range, start: Any) -> None:
    """Add arrays; runs in another process."""
    start.wait()
    with ArrayCache(folder) as cache:
        for number in numbers:
            cache.add(str(number), np.full((40, 30), number, np.float32))


def test_two_processes_write_two_packs(tmp_path: Path) -> None:
    """All arrays are found with the right values, although some keys were added by both."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [context.Process(target=_add_some, args=(tmp_path, part, start)) for part in (range(60), range(40, 99))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 4
    with ArrayCache(tmp_path) as cache:
        for number in range(99):
            image = cache.known(str(number))
            assert image is not None
            image.check()
            np.testing.assert_array_equal(image.load(), np.full((40, 30), number, np.float32))


def test_arrays_of_a_pack_that_is_being_written_are_found(tmp_path: Path) -> None:
    """Another process finds an array before the writer has finished."""
    with ArrayCache(tmp_path) as writer:
        image = writer.add("float", ARRAYS["float"][0])
        assert found(tmp_path) == {"float": image}


_KILLED = """
import sys
import numpy as np
from pathlib import Path
from harness.data.cache import ArrayCache

with ArrayCache(Path(sys.argv[1])) as cache:
    for number in range(10**6):
        cache.add(str(number), np.full(100_000 + number, number, np.float32))
        print(number, flush=True)
"""


def test_killed_preparation_keeps_complete_arrays(tmp_path: Path) -> None:
    """After SIGKILL every complete array is found with its values, and further arrays can be added."""
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = -1
        while last < 20:
            last = int(process.stdout.readline())
        process.kill()
        last = max([last, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n")])
    assert process.returncode == -signal.SIGKILL
    with ArrayCache(tmp_path) as cache:
        for number in range(last + 1):
            image = cache.known(str(number))
            assert image is not None
            image.check()
            assert (image.load() == number).all() and image.shape == (100_000 + number,)
        assert cache.known(str(last + 2)) is None
        again = cache.add(str(last + 2), np.zeros(3))
    with ArrayCache(tmp_path) as cache:
        assert cache.known(str(last + 2)) == again


def test_new_pack_is_started_after_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error such as a full disk, the next array goes to a new pack."""
    with ArrayCache(tmp_path) as cache:
        first = cache.add("float", ARRAYS["float"][0])
        with monkeypatch.context() as patch:
            patch.setattr(cache_module.json, "dumps", _disk_full)
            with pytest.raises(OSError, match="No space left"):
                cache.add("bool", MASK)
        assert cache.known("bool") is None
        second = cache.add("bool", MASK)
    assert second.path != first.path
    assert found(tmp_path) == {"float": first, "bool": second}


def test_a_pack_without_arrays_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first array could not be written, no files remain."""
    monkeypatch.setattr(cache_module.json, "dumps", _disk_full)
    with pytest.raises(OSError, match="No space left"), ArrayCache(tmp_path) as cache:
        cache.add("bool", MASK)
    assert not list(tmp_path.iterdir())


def _disk_full(content: Any) -> str:
    raise OSError(28, "No space left on device")


# --- digests of originals ---


@pytest.fixture
def originals(tmp_path: Path) -> tuple[Path, ...]:
    """Two files that tests may change."""
    (tmp_path / "data").mkdir()
    paths = (tmp_path / "data" / "one", tmp_path / "data" / "two")
    for path in paths:
        path.write_text(path.name)
    return paths


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed; every file counts as settled."""
    names: list[str] = []
    checksum = cache_module.checksum
    monkeypatch.setattr(cache_module, "checksum", lambda path: (names.append(path.name), checksum(path))[1])
    monkeypatch.setattr(cache_module, "_SETTLED_NS", -1)
    return names


def digests(tmp_path: Path) -> Digests:
    """Digests as a new process creates them."""
    return Digests(tmp_path / "digests", tmp_path / "data")


def keep(tmp_path: Path, *paths: Path) -> dict[Path, str]:
    """Hash files and remember their digests."""
    some = digests(tmp_path)
    made = {path: some.of(path) for path in paths}
    some.keep()
    return made


def test_a_digest_is_remembered(tmp_path: Path, originals: tuple[Path, ...], hashed: list[str]) -> None:
    """An unchanged file is hashed once, and the digests of a cohort are stored in one file."""
    assert keep(tmp_path, *originals) == keep(tmp_path, *originals)
    assert hashed == ["one", "two"]
    assert len(list((tmp_path / "digests").iterdir())) == 1


def test_digests_are_written_only_by_keep(tmp_path: Path, originals: tuple[Path, ...], hashed: list[str]) -> None:
    """Nothing is written for a cohort with faults."""
    digests(tmp_path).of(originals[0])
    assert not (tmp_path / "digests").exists()


def test_a_changed_file_is_hashed_again(tmp_path: Path, originals: tuple[Path, ...], hashed: list[str]) -> None:
    """The digest of the other file is reused."""
    before = keep(tmp_path, *originals)
    originals[1].write_text("another content")
    after = keep(tmp_path, *originals)
    assert hashed == ["one", "two", "two"]
    assert after[originals[0]] == before[originals[0]] and after[originals[1]] != before[originals[1]]
    keep(tmp_path, *originals)
    assert len(hashed) == 3


def test_digests_of_other_files_are_kept(tmp_path: Path, originals: tuple[Path, ...], hashed: list[str]) -> None:
    """Two processes that hash different files at the same time keep both digests."""
    one, other = digests(tmp_path), digests(tmp_path)
    one.of(originals[0])
    other.of(originals[1])
    one.keep()
    other.keep()
    keep(tmp_path, *originals)
    assert hashed == ["one", "two"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"one": null}', '{"one": []}', '{"one": [1, "x"]}'])
def test_digests_that_cannot_be_read_are_made_again(
    tmp_path: Path, originals: tuple[Path, ...], hashed: list[str], content: str
) -> None:
    """A damaged file of digests is ignored and replaced."""
    before = keep(tmp_path, *originals)
    (path,) = (tmp_path / "digests").iterdir()
    path.write_text(content)
    assert keep(tmp_path, *originals) == before
    assert hashed == ["one", "two", "one", "two"]
