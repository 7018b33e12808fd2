import json
import os
import threading

import pytest

from dcml_tune.utils.files import (
    CorruptFileError,
    read_checksummed,
    readable_size,
    size_of,
    write_atomic,
    write_checksummed,
)


def test_a_reader_never_sees_half_a_file(tmp_path):
    """While a file is written again and again, each reading finds a whole version of it."""
    file, versions = tmp_path / "f", [bytes([number]) * 200_000 for number in range(4)]
    write_atomic(file, versions[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for version in versions:
                write_atomic(file, version)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {file.read_bytes() for _ in range(300)}
    stop.set()
    writer.join()
    assert seen <= set(versions)
    assert os.listdir(tmp_path) == ["f"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """A full disk, say."""
    file = tmp_path / "f"
    write_atomic(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new")
    assert (file.read_bytes(), os.listdir(tmp_path)) == (b"old", ["f"])


def test_a_sealed_file_gives_back_its_facts_and_shows_any_change(tmp_path):
    """Numbers that JSON rounds included; a missing, cut or changed file is named."""
    file, facts = tmp_path / "f.json", {"value": 0.1 + 0.2, "name": "ü", "list": [1, None, {"a": True}]}
    write_checksummed(file, facts)
    assert read_checksummed(file) == facts
    whole = file.read_text()
    changed = json.dumps({**json.loads(whole), "value": 0.31})
    for text in (changed, whole[:-5], "[]", "{}", ""):
        file.write_text(text)
        with pytest.raises(CorruptFileError, match=str(file)):
            read_checksummed(file)
    file.unlink()
    with pytest.raises(CorruptFileError, match=str(file)):
        read_checksummed(file)


def test_a_file_of_two_names_takes_its_space_once(tmp_path):
    """Hard links are how models are tracked without a second copy."""
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "below").mkdir()
    os.link(tmp_path / "a", tmp_path / "below" / "b")
    assert size_of(tmp_path) == 1000
    assert (readable_size(1000), readable_size(2.5e9)) == ("0.0 MB", "2.5 GB")
