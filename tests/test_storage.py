"""--storage: what a search keeps at an address, so that it survives its nodes."""

import errno
import uuid

import fsspec
import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import storage as storage_module
from dcml_tune.runs.storage import Storage, StorageError
from dcml_tune.runs.storage_address import checked_address, well_formed
from dcml_tune.runs.stored_files import StoredAttempt, StoredFiles


@pytest.fixture(params=["file", "memory"])
def place(request, tmp_path):
    """A storage, empty."""
    name = uuid.uuid4().hex
    yield Storage(f"file://{tmp_path}/bucket/{name}" if request.param == "file" else f"memory://{name}/runs")
    if request.param == "memory":
        for path in fsspec.filesystem("memory").find(f"/{name}"):
            fsspec.filesystem("memory").rm_file(path)


@pytest.fixture
def files(place):
    return StoredFiles(place.child("s", "trials", "000"))


def written(directory, **texts):
    """A directory with files; the names of files in folders have `__` for the slash."""
    for name, text in texts.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def texts(directory):
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_objects_are_written_read_listed_and_removed(place, tmp_path):
    """Names are relative to the place; one that does not exist is no error to a removal."""
    (tmp_path / "one").write_text("1")
    place.upload(tmp_path / "one", "a/one")
    place.child("a").write("two", b"22")
    place.copy("a/two", "b/three")
    assert place.sizes() == {"a/one": 1, "a/two": 2, "b/three": 2}
    assert place.sizes("a") == {"a/one": 1, "a/two": 2}
    assert place.sizes("c") == {}
    place.download("b/three", tmp_path / "three")
    assert (tmp_path / "three").read_text() == "22"
    place.remove(["a/one", "nothing"])
    assert set(place.sizes()) == {"a/two", "b/three"}
    with pytest.raises(FileNotFoundError):
        place.read("a/one")


def test_an_object_is_created_once(place):
    """By the first process; the same content again is a repeated call of it."""
    assert place.create("x", b"first")
    assert place.create("x", b"first")
    assert not place.create("x", b"second")
    assert place.read("x") == b"first"


def test_without_conditional_writes_the_last_one_counts(place, monkeypatch):
    """The content is read again after a while."""
    monkeypatch.setattr(storage_module, "_SETTLED_S", 0.0)
    plain = type(place._fs).pipe_file

    def unconditional(self, path, content, mode="overwrite", **more):
        if mode == "create":
            raise NotImplementedError
        plain(self, path, content, **more)

    monkeypatch.setattr(type(place._fs), "pipe_file", unconditional)
    assert place.create("x", b"first")
    assert not place.create("x", b"second")


def test_a_storage_that_does_not_answer_is_tried_again(place, monkeypatch):
    """Up to a limit; then the error names the address, the reason and the remedy."""
    monkeypatch.setattr(storage_module, "_AGAIN_S", 0.0)
    plain, calls = type(place._fs).cat_file, []

    def away(self, path, **more):
        calls.append(path)
        if len(calls) < 4:
            raise OSError(errno.ETIMEDOUT, "timed out")
        return plain(self, path, **more)

    place.write("x", b"1")
    monkeypatch.setattr(type(place._fs), "cat_file", away)
    assert place.read("x") == b"1"
    calls.clear()
    with pytest.raises(StorageError, match=r"--storage .*: x cannot be read \(.*timed out.*; see to the storage"):
        place.impatient().read("x")
    assert len(calls) == 1


def test_a_refused_write_is_not_repeated(place, monkeypatch):
    """Without the right to write there, waiting does not help."""

    def refused(self, path, content, **more):
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(type(place._fs), "pipe_file", refused)
    with pytest.raises(StorageError, match=r"Access Denied.*give this user the right to read and write there"):
        place.write("x", b"1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no address; give s3://BUCKET/PREFIX"),
        ("runs", "is no address; give s3://BUCKET/PREFIX, or file:///PATH"),
        ("/mnt/runs", "or file:///mnt/runs for a directory"),
        ("file://runs", "a relative path; give file:///PATH"),
        ("file:///runs/../x", "a relative path"),
        ("s3://", "is not a valid address"),
        ("s3://key:secret@bucket/x", r"s3://\*\*\*@bucket/x: holds a password, which would be recorded"),
        ("memory://x", "memory:// is no storage that processes share"),
        ("https://example.com/x", "https:// is no storage that processes share"),
    ],
)
def test_addresses_that_cannot_work_are_refused(text, said):
    """With the rule and a remedy; a password is not shown."""
    with pytest.raises(SettingError, match=f"^--storage .*{said}") as refused:
        checked_address(text)
    assert "secret" not in str(refused.value)


def test_an_address_is_tested(tmp_path):
    """One that can be used has no slash at its end; one that cannot names the reason."""
    assert checked_address(f"file://{tmp_path}/new/") == f"file://{tmp_path}/new"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "taken").write_text("")
    with pytest.raises(SettingError, match=r"taken/x: cannot be used \(.*; give an address that this user may read"):
        checked_address(f"file://{tmp_path}/taken/x")
    with pytest.raises(SettingError, match="fsspec knows no nosuch:// addresses"):
        checked_address("nosuch://x")


def test_a_missing_package_is_named(monkeypatch):
    """With the command that installs it."""

    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(SettingError, match=r"s3://b/x: Python finds no package for s3:// .*pip install s3fs"):
        checked_address("s3://b/x")
    assert well_formed("S3://b/x/") == "s3://b/x"


def test_files_are_pulled_as_they_were_pushed(files, tmp_path):
    """The newest commit counts; what is unchanged is not written again, and what is gone is removed."""
    source = written(tmp_path / "source", state="1", best__model="m", **{".temporary": "x"})
    attempt = StoredAttempt(files, files.begin())
    assert files.pull(tmp_path / "none") is None
    assert attempt.push(source)
    assert not attempt.push(source)
    (source / "state").write_text("22")
    (source / "best" / "model").unlink()
    written(source, best__other="o")
    assert attempt.push(source)
    target = written(tmp_path / "target", old="x", best__model="other")
    files.pull(target, exact=True)
    assert texts(target) == {"state": "22", "best/other": "o"}
    assert len(files.storage.sizes()) == 4  # begun.json, commit, two files


def test_a_commit_is_found_as_it_was_while_the_next_one_is_written(files, tmp_path, monkeypatch):
    """A push that breaks off changes nothing for readers, whatever it wrote."""
    source = written(tmp_path / "source", state="1", other="a")
    attempt = StoredAttempt(files, files.begin())
    attempt.push(source)
    written(source, state="2", other="b")
    plain = Storage.write

    def breaks(self, name, content):
        raise StorageError("away")

    monkeypatch.setattr(Storage, "write", breaks)
    with pytest.raises(StorageError):
        attempt.push(source)
    monkeypatch.setattr(Storage, "write", plain)
    files.pull(tmp_path / "first")
    assert texts(tmp_path / "first") == {"state": "1", "other": "a"}
    files.storage.write("attempt-00001/commit-00000009.json", b'{"files": {}, "se')  # torn
    attempt.push(source)
    files.pull(tmp_path / "second")
    assert texts(tmp_path / "second") == {"state": "2", "other": "b"}


def test_an_older_attempt_cannot_change_what_a_newer_one_has(files, tmp_path):
    """It writes into its own directory, which nobody reads once the newer one has a commit."""
    old = StoredAttempt(files, files.begin())
    old.push(written(tmp_path / "old", state="1"))
    number = files.begin()
    files.pull(tmp_path / "new")
    new = StoredAttempt(files, number)
    new.push(written(tmp_path / "new", state="2"))
    old.push(written(tmp_path / "old", state="1 again", more="x"))
    files.pull(tmp_path / "target", exact=True)
    assert texts(tmp_path / "target") == {"state": "2"}
    assert files.newest_begun().number == number


def test_a_number_belongs_to_one_attempt(files):
    """Of two drivers that begin the same one, the second is told so."""
    assert files.begin_as(1, token="a")
    assert not files.begin_as(1, token="b")
    assert files.newest_begun().token == "a"
    assert files.begin() == 2


def test_what_was_kept_of_an_ended_trial(files, tmp_path):
    """The driver copies it to an attempt of its own, which no process of the trial writes to."""
    attempt = StoredAttempt(files, files.begin())
    attempt.push(written(tmp_path / "source", state="1", best="m", result="r"))
    number = files.begin(ended=True)
    assert files.newest_begun().ended
    files.take_over(number, {"best", "result"})
    files.pull(tmp_path / "target")
    assert texts(tmp_path / "target") == {"best": "m", "result": "r"}
    assert all(name.startswith("attempt-00002/") for name in files.storage.sizes())


def test_a_damaged_object_is_not_taken(files, tmp_path, monkeypatch):
    """Its checksum tells."""
    monkeypatch.setattr("dcml_tune.runs.stored_files._PAUSE_S", 0.0)
    StoredAttempt(files, files.begin()).push(written(tmp_path / "source", state="right"))
    files.storage.write("attempt-00001/state", b"wrong")
    with pytest.raises(StorageError, match=r"files of its newest commit are missing .*checksum"):
        files.pull(tmp_path / "target")
    assert texts(tmp_path / "target") == {}


def test_files_that_are_there_are_not_copied_again(files, tmp_path, monkeypatch):
    """In the directory itself, or beside it, if their content is the same."""
    StoredAttempt(files, files.begin()).push(written(tmp_path / "source", one="1", two="2", three="3"))
    copied, plain = [], Storage.download
    monkeypatch.setattr(Storage, "download", lambda self, name, file: (copied.append(name), plain(self, name, file))[1])
    target = written(tmp_path / "target", one="1", three="x")
    files.pull(target, beside=written(tmp_path / "beside", two="2", three="y"))
    assert texts(target) == {"one": "1", "two": "2", "three": "3"}
    assert copied == ["attempt-00001/three"]
