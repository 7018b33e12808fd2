import numpy as np
import pytest
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from dcml_tune.evaluation import map_at_r, marp, recall_at_k, retrieval_measures


def naive(queries, labels, k, gallery=None, gallery_labels=None):
    """Recall@k, MAP@R and mARP by loops."""
    itself = gallery is None
    gallery, gallery_labels = (queries, labels) if itself else (gallery, gallery_labels)
    recalls, maps, marps = [], [], []
    for i, (query, label) in enumerate(zip(queries, labels, strict=True)):
        others = [j for j in range(len(gallery)) if not (itself and i == j)]
        others.sort(key=lambda j, query=query: float(((query - gallery[j]) ** 2).sum()))
        hits = [gallery_labels[j] == label for j in others]
        recalls.append(any(hits[:k]))
        r = sum(hits)
        if r:
            precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(r) if hits[n]]
            maps.append(sum(precisions) / r)
            marps.append(sum(precisions) / len(precisions) if precisions else 0.0)
    return np.mean(recalls), np.mean(maps), np.mean(marps)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_gallery", [False, True])
def test_measures_agree_with_loops(seed, with_gallery):
    """Recall@k, MAP@R and mARP are those of the loops, with and without a gallery, with queries without relevant images."""
    rng = np.random.default_rng(seed)
    queries, labels = rng.normal(size=(60, 6)).astype(np.float32), rng.integers(0, 12, 60)
    more = {}
    if with_gallery:
        more = {"gallery": rng.normal(size=(80, 6)).astype(np.float32), "gallery_labels": rng.integers(2, 14, 80)}
    for k in (1, 4):
        recall, expected_map, expected_marp = naive(queries, labels, k, **more)
        assert recall_at_k(queries, labels, [k], **more)[k] == pytest.approx(recall)
    assert map_at_r(queries, labels, **more) == pytest.approx(expected_map)
    assert marp(queries, labels, **more) == pytest.approx(expected_marp)


def test_agrees_with_pytorch_metric_learning():
    """MAP@R, R-precision and recall@1 are those of an independent library."""
    rng = np.random.default_rng(0)
    queries, labels = rng.normal(size=(200, 8)).astype(np.float32), rng.integers(0, 20, 200)
    found = retrieval_measures(queries, labels, [1])
    names = {"mean_average_precision_at_r": "map_at_r", "r_precision": "r_precision", "precision_at_1": "recall_at_1"}
    expected = AccuracyCalculator(include=tuple(names), k="max_bin_count").get_accuracy(queries, labels)
    for theirs, ours in names.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6)


def test_duplicates_are_not_taken_for_the_query_itself():
    """An image is left out of its own neighbours by its index, also where a duplicate of another class ties."""
    queries = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert recall_at_k(queries, [0, 1, 2, 3], [1]) == {1: 0.0}
    assert recall_at_k(queries, [0, 0, 1, 1], [1]) == {1: 1.0}
