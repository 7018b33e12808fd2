"""What is done where a system lacks a call that Linux has."""

import errno
import os
import sys

import pytest

from dcml_tune.utils import machine


@pytest.fixture(params=["linux", "without"])
def system(request, monkeypatch):
    """This system, and one on which the calls are missing, as on macOS."""
    if request.param == "without":
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.delattr(os, "posix_fallocate")
    return request.param


def test_cores(system):
    """At least one, at most those of the machine."""
    assert 1 <= machine.usable_cores() <= os.cpu_count()


@pytest.mark.parametrize("size", [10, (1 << 20) + 7, 3 << 20])
def test_room_is_taken_and_what_is_written_stays(size, system, tmp_path):
    """All blocks are there, the header is untouched, the size is as it was."""
    file = tmp_path / "f"
    with file.open("w+b") as opened:
        opened.write(b"header")
        opened.truncate(size)
        opened.flush()
        machine.reserve(opened.fileno(), 6, size)
    assert file.read_bytes() == b"header" + bytes(size - 6)
    assert file.stat().st_blocks * 512 >= size


@pytest.mark.parametrize(("number", "passes"), [(errno.EOPNOTSUPP, True), (errno.EINVAL, True), (errno.ENOSPC, False)])
def test_a_file_system_without_the_call(number, passes, monkeypatch, tmp_path):
    """Zeros are written; that the disk is full stays an error."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (tmp_path / "f").open("w+b") as opened:
        if passes:
            machine.reserve(opened.fileno(), 0, 5)
            assert os.fstat(opened.fileno()).st_size == 5
        else:
            with pytest.raises(OSError, match="No space"):
                machine.reserve(opened.fileno(), 0, 5)


def test_peak_memory(monkeypatch):
    """Bytes, though Linux counts KiB and macOS bytes."""
    here = machine.peak_memory_bytes()
    assert 10 << 20 < here < 1 << 40
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory_bytes() * 1000 < here * 2


def test_a_store_is_built_without_the_calls(folder, monkeypatch, tmp_path):
    """The whole way: the store of some images."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.data import load, open_or_build

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "posix_fallocate")
    images = load(TrialConfig(dataset="folder", dataset_dir=str(folder))).train.take(range(8))
    store = open_or_build(images, tmp_path, kind="full", sz_resize=8, sz_crop=8)
    assert (store.image(3) == images.read(3)).all()
