"""Retrieval and clustering measures against loops, scikit-learn and pytorch-metric-learning."""

import naive_measures as naive
import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dcml_tune.metrics import neighbours, retrieval
from dcml_tune.metrics.clustering import ami, nmi
from dcml_tune.metrics.retrieval import map_at_r, marp, r_precision, recall_at_k, retrieval_measures

KS = (1, 2, 4, 100)


def clustered(n, classes, dim, seed, noise=0.8):
    """Unit rows around one centre a class, and classes of unequal size."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) ** 2 * classes).astype(np.int64)
    rows = rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def assert_as_naive(measures, lists):
    expected = naive.retrieval(lists) | {f"recall_at_{k}": naive.recall(lists, k) for k in KS}
    assert measures == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "classes", "dim"), [(60, 5, 8), (80, 40, 4), (50, 2, 3), (30, 1, 4), (2, 2, 3), (1, 1, 2)]
)
def test_measures_equal_those_of_loops(n, classes, dim):
    """One pass of blocks gives what a loop over queries and ranks gives, classes of one image included."""
    rows, labels = clustered(n, classes, dim, seed=n)
    assert_as_naive(retrieval_measures(rows, labels, KS), naive.ranked_hits(rows, labels))


def test_query_against_gallery_never_finds_queries():
    """With a gallery, neighbours come from it alone, and R counts its images."""
    rows, labels = clustered(90, 8, 6, seed=1)
    parts = rows[:35], labels[:35], rows[35:], labels[35:]
    measures = retrieval_measures(parts[0], parts[1], KS, gallery=parts[2], gallery_labels=parts[3])
    assert_as_naive(measures, naive.ranked_hits(*parts))


def test_queries_without_relevant_images_are_misses_in_recall_only():
    """They lower recall, and are left out of the others."""
    rows = np.array([[0.0], [0.1], [5.0], [9.0]])
    measures = retrieval_measures(rows, [0, 0, 1, 2], (1,))
    assert measures == {"recall_at_1": 0.5, "map_at_r": 1.0, "marp": 1.0, "r_precision": 1.0}
    # None with a relevant image: nothing was found.
    assert set(retrieval_measures(rows, [0, 1, 2, 3], (1,)).values()) == {0.0}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "classes"), [(40, 4), (200, 60)])
def test_ties_come_in_the_order_of_the_images(n, classes, seed):
    """Whole-number rows tie all the time: the first image comes first, at the last place counted, too."""
    rng = np.random.default_rng(seed)
    rows, labels = rng.integers(-1, 2, size=(n, 3)), rng.integers(classes, size=n)
    assert_as_naive(retrieval_measures(rows, labels, KS), naive.ranked_hits(rows, labels))


def test_self_is_left_out_by_index_where_duplicates_tie():
    """A duplicate of the query counts as a neighbour, whichever of the two comes first."""
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    assert recall_at_k(rows, [0, 0, 1, 1], [1]) == {1: 1.0}
    assert recall_at_k(rows, [0, 1, 0, 1], [1]) == {1: 0.0}


def test_collapsed_rows_give_chance_not_success():
    """Where all rows are the same, the first others are found, whatever their class."""
    labels = np.arange(120) % 6
    rows = np.ones((120, 16), dtype=np.float32)
    assert_as_naive(retrieval_measures(rows, labels, KS), naive.ranked_hits(rows[:, :1], labels))


def test_blocks_of_any_size_give_the_same(monkeypatch):
    """How many queries fit in a block changes nothing."""
    rows, labels = clustered(150, 9, 5, seed=3)
    expected = retrieval_measures(rows, labels, KS)
    for distances, results in [(1, 1 << 22), (700, 1 << 22), (1 << 24, 1), (1 << 24, 500)]:
        monkeypatch.setattr(neighbours, "_DISTANCES", distances)
        monkeypatch.setattr(neighbours, "_RESULTS", results)
        assert retrieval_measures(rows, labels, KS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("values", [3, 1000])
@pytest.mark.parametrize(("tile", "width"), [((64, 128), 9), ((32, 32), 20), ((48, 100), 20), ((512, 4096), 1)])
def test_lists_over_tiles_equal_a_stable_sort(monkeypatch, tile, width, values, with_gallery):
    """Tiles of any size find the same others, also where duplicates tie; small whole numbers make distances exact."""
    monkeypatch.setattr(neighbours, "_TILE", tile)
    rng = np.random.default_rng(width)
    rows = rng.integers(-values, values + 1, size=(500, 3)).astype(np.float32)
    others = rng.integers(-values, values + 1, size=(330, 3)).astype(np.float32) if with_gallery else rows
    labels, other_labels = np.zeros(len(rows)), np.zeros(len(others)) if with_gallery else None
    search = retrieval._search(rows, labels, others if with_gallery else None, other_labels)
    assert search._lists_pay(width)
    distances = np.square(rows[:, None].astype(float) - others).sum(2)
    if not with_gallery:
        np.fill_diagonal(distances, np.inf)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :width]
    np.testing.assert_array_equal(search._listed(width), expected)


@pytest.mark.parametrize(("queries", "others"), [(0, None), (1, None), (0, 40), (2, 0)])
def test_nothing_to_find_is_no_success(queries, others):
    """Without queries, or without others than the query, all measures are 0."""
    gallery = None if others is None else np.ones((others, 3))
    found = retrieval_measures(np.ones((queries, 3)), np.zeros(queries), (1, 5), gallery=gallery,
                               gallery_labels=None if others is None else np.zeros(others))  # fmt: skip
    assert found == dict.fromkeys(found, 0.0)


def test_measures_are_the_same_by_lists_and_by_whole_rows(monkeypatch):
    """Images without others of their class, classes of any size and a k above the largest, by either way."""
    rows, labels = clustered(900, 60, 8, seed=11)
    labels[:5] = 1000 + np.arange(5)
    monkeypatch.setattr(neighbours, "_TILE", (128, 256))
    measured = []
    for entries in (0, 1 << 25):
        monkeypatch.setattr(neighbours, "_LISTED", entries)
        measured.append(retrieval_measures(rows, labels, (1, 4, 50)))
    assert measured[0] == pytest.approx(measured[1], abs=1e-9)


@pytest.mark.parametrize("values", [44, 1 << 20])
@pytest.mark.parametrize(
    ("width", "columns"), [(1, 400), (5, 400), (60, 400), (400, 400), (1, 640), (18, 640), (20, 640), (61, 2048)]
)
def test_nearest_equals_a_stable_sort(width, columns, values):
    """Least distances of any sign, with many ties or few, in the order of a stable sort."""
    generator = torch.Generator().manual_seed(width)
    distances = (torch.randint(values, (50, columns), generator=generator) - 4) / 4
    distances[:, 7], distances[0, :] = -0.0, 0.0
    distances[3, 11] = torch.inf
    expected = distances.sort(dim=1, stable=True).indices[:, :width]
    torch.testing.assert_close(neighbours._nearest(distances, width), expected)


@pytest.mark.parametrize("with_gallery", [False, True])
def test_measures_equal_those_of_pytorch_metric_learning(with_gallery):
    """Precision at 1, R-precision and MAP@R agree with an independent implementation."""
    rows, labels = clustered(400, 20, 16, seed=5)
    rows, labels = torch.from_numpy(rows), torch.from_numpy(labels)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    queries, others = (slice(0, 150), slice(150, None)) if with_gallery else (slice(None), slice(None))
    reference = (rows[others], labels[others]) if with_gallery else (None, None)
    expected = calculator.get_accuracy(rows[queries], labels[queries], *reference)
    found = retrieval_measures(rows[queries], labels[queries], (1,), gallery=reference[0], gallery_labels=reference[1])
    assert [found["recall_at_1"], found["r_precision"], found["map_at_r"]] == pytest.approx(
        [expected[name] for name in names], abs=1e-6
    )


def test_single_measures_are_those_of_the_one_pass():
    """Each named function gives its part of `retrieval_measures`, from arrays, tensors and half precision."""
    rows, labels = clustered(70, 6, 8, seed=7)
    rows = rows.astype(np.float16)
    found = retrieval_measures(rows, labels, (1, 4))
    for rows_as, labels_as in [
        (rows, labels),
        (torch.from_numpy(rows).requires_grad_(), torch.from_numpy(labels)),
    ]:
        assert recall_at_k(rows_as, labels_as, [1, 4]) == {1: found["recall_at_1"], 4: found["recall_at_4"]}
        single = [measure(rows_as, labels_as) for measure in (map_at_r, marp, r_precision)]
        assert single == [found["map_at_r"], found["marp"], found["r_precision"]]
    # They differ widely, so a mix-up would show.
    assert found["map_at_r"] < found["r_precision"] < found["marp"]


def test_rows_need_not_be_unit_vectors():
    """Distances are Euclidean, not angles: a scaled copy of a row is far."""
    rows = np.array([[1.0, 0.0], [10.0, 0.0], [1.0, 0.5], [10.0, 3.0]])
    assert recall_at_k(rows, [0, 1, 0, 1], [1]) == {1: 1.0}


def test_precision_of_the_backbone_does_not_reach_distances(monkeypatch):
    """Autocast and low matmul precision around the call change nothing, and are as they were after it."""
    rows, labels = clustered(300, 30, 64, seed=9, noise=2.0)
    expected = retrieval_measures(rows, labels, KS)
    seen, nearest, before = [], neighbours._nearest, torch.get_float32_matmul_precision()

    def recorded(distances, width):
        seen.append(torch.get_float32_matmul_precision())
        return nearest(distances, width)

    monkeypatch.setattr(neighbours, "_nearest", recorded)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert retrieval_measures(rows, labels, KS) == expected
        # Few processors multiply otherwise at medium precision, so the result alone would not show it.
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([[1.0], [float("nan")], [2.0]], [0, 0, 0], (1,)), "1 of 3 rows of embeddings are not finite"),
        (([[1.0], [2.0]], [0], (1,)), "1 for 2 rows of embeddings"),
        (([[1.0], [2.0]], [0, 0], (0, 1)), "k >= 1"),
        (([[1.0], [2.0]], [0, 0], (1,), [[1.0]]), "give both or neither"),
        (([[1.0], [2.0]], [0, 0], (1,), [[1.0]], [0, 1]), "2 for 1 rows of gallery"),
    ],
)
def test_wrong_input_is_refused(arguments, said):
    """Rows that do not agree or are not finite are refused in one line, not measured."""
    keywords = dict(zip(("gallery", "gallery_labels"), arguments[3:], strict=False))
    with pytest.raises(ValueError, match=said) as error:
        retrieval_measures(*arguments[:3], **keywords)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("n", "a", "b"), [(500, 7, 5), (300, 100, 3), (50, 1, 4), (50, 1, 1), (40, 40, 40)])
def test_nmi_and_ami_equal_those_of_scikit_learn(n, a, b):
    """Arithmetic mean normalisation, for any numbers as labels, single clusters included."""
    rng = np.random.default_rng(n + a)
    first, second = rng.integers(a, size=n), rng.integers(b, size=n) * 3 - 1
    mixed = np.where(rng.random(n) < 0.5, first, second)
    for other in (second, mixed, first):
        assert nmi(first, other) == pytest.approx(normalized_mutual_info_score(first, other), abs=1e-9)
        assert ami(torch.from_numpy(first), other) == adjusted_mutual_info_score(first, other)


def test_nmi_refuses_partitions_of_different_length():
    """A line says how long the two are."""
    with pytest.raises(ValueError, match="3 and 2"):
        nmi([0, 1, 1], [0, 1])
