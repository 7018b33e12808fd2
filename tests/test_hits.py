"""hits.npz: what the queries of a run found, measured in one pass and read back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcml_tune.metrics.retrieval import retrieve
from dcml_tune.runs.attempts import settle
from dcml_tune.runs.hits import HITS_FILE, QueryHits
from dcml_tune.runs.results import read_result
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from trainables import DivideAndConquer, Run

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16,
    "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 1,
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=50))
def test_what_is_written_is_read(tmp_path_factory, rows):
    """For any number of queries, none included."""
    made = QueryHits(classes=np.array([c for c, _ in rows], np.int64), hits=np.array([h for _, h in rows], np.bool_))
    file = tmp_path_factory.mktemp("hits") / HITS_FILE
    made.write(file)
    found = QueryHits.read(file)
    np.testing.assert_array_equal(found.classes, made.classes)
    np.testing.assert_array_equal(found.hits, made.hits)
    assert (found.classes.dtype, found.hits.dtype) == (np.int64, np.bool_)


def test_a_file_of_the_size_of_cub_is_small(tmp_path):
    """5,924 queries of 100 classes take little more than a bit each."""
    classes = np.repeat(np.arange(100, 200), 60)[:5924]
    QueryHits(classes=classes, hits=np.random.default_rng(0).random(5924) < 0.6).write(tmp_path / HITS_FILE)
    assert (tmp_path / HITS_FILE).stat().st_size < 2000


DAMAGE = {
    "torn": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"hits",
    "a changed bit": lambda data: data.replace(np.packbits([1, 1, 0]).tobytes(), np.packbits([1, 0, 0]).tobytes()),
    "code": lambda data: b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_in_one_line(tmp_path, kind):
    """It is never read as hits; a run without the file, as of earlier versions, is no error."""
    file = tmp_path / HITS_FILE
    assert QueryHits.read(file) is None
    with pytest.raises(ValueError, match="one class per query"):
        QueryHits(classes=np.zeros(2, np.int64), hits=np.zeros(3, np.bool_))
    made = QueryHits(classes=np.array([1, 1, 2]), hits=np.array([True, True, False]))
    made.write(file)
    data = file.read_bytes()
    if kind == "a changed bit":
        with np.load(file) as found:
            arrays = dict(found)
        np.savez(file, **{**arrays, "hits": np.packbits([True, False, False])})
    else:
        file.write_bytes(DAMAGE[kind](data))
    with pytest.raises(CorruptFileError, match=str(file)) as error:
        QueryHits.read(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("with_gallery", [False, True])
def test_hits_are_those_of_recall_at_1(with_gallery):
    """Query by query: the class of the nearest gallery image; one without a relevant image is a miss."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(80, 4)).astype(np.float32), rng.integers(0, 30, 80)
    rows[:40] += labels[:40, None]
    gallery, gallery_labels = (rows[40:], labels[40:]) if with_gallery else (None, None)
    queries, asked = (rows[:40], labels[:40]) if with_gallery else (rows, labels)
    found = retrieve(queries, asked, (1, 5), gallery=gallery, gallery_labels=gallery_labels)
    others, other_labels = (gallery, gallery_labels) if with_gallery else (rows, labels)
    distances = np.linalg.norm(queries[:, None] - others, axis=2)
    if not with_gallery:
        np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(found.hits, other_labels[distances.argmin(1)] == asked)
    assert found.measures["recall_at_1"] == found.hits.mean()
    np.testing.assert_array_equal(
        retrieve(queries, asked, (), gallery=gallery, gallery_labels=gallery_labels).hits, found.hits
    )


@pytest.mark.parametrize(
    ("role", "metric", "val_share"),
    [
        ("confirm", "val/recall_at_1", 0.2),
        ("published", "test/recall_at_1", 0.0),
        ("untrained", "test/recall_at_1", 0.0),
    ],
)
def test_a_compared_run_keeps_its_hits(folder, tmp_path, role, metric, val_share):
    """Beside its result, on the classes on which it is compared; a process that ended before it wrote the result has it written."""
    directory = tmp_path / "run"
    run = Run(key="r", role=role, directory=str(directory), stores=str(tmp_path / "store"))
    config = {**SETTINGS, "dataset_dir": str(folder), "val_share": val_share, "run": run.as_dict()}
    trial = DivideAndConquer(config)
    result = trial.train()
    trial.stop()
    settle(directory)
    assert result["done"]
    hits = QueryHits.read(directory / HITS_FILE)
    assert hits.hits.mean() == pytest.approx(read_result(directory / "result.json")[metric])
    assert len(np.unique(hits.classes)) >= 2
    if role == "published":
        written = read_checksummed(directory / "result.json")
        (directory / "result.json").unlink()
        again = DivideAndConquer(config)
        again.train()
        again.stop()
        settle(directory)
        assert read_checksummed(directory / "result.json") == written
