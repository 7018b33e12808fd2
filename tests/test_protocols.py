"""The final measures, against loops and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dcml_tune.clustering.kmeans import kmeans
from dcml_tune.data.image_list import EvaluationSet, ImageList
from dcml_tune.metrics.protocols import _one_each, clustering_measures, final_measures, official_measures


def points(labels, dim=6, seed=0):
    """Unit rows that lie near those of their class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(labels) + 1, dim))
    return F.normalize(torch.from_numpy(centres[labels] + rng.normal(0, 0.8, (len(labels), dim))).float(), dim=1)


LABELS = np.repeat(np.arange(9), [2, 5, 3, 1, 4, 6, 2, 3, 7])


def images(paths, labels):
    from pathlib import Path

    return ImageList(tuple(paths), np.asarray(labels), Path("nowhere"))


def test_the_official_protocol_is_that_of_the_loops():
    """One image of each class is the gallery, the others search it; mean and deviation over the draws."""
    embeddings = points(LABELS)
    found = official_measures(embeddings, LABELS, (1, 5), draws=4, seed=3)
    values = {1: [], 5: []}
    for draw in range(4):
        drawn = _one_each(LABELS, np.random.default_rng([3, draw]))
        assert sorted(LABELS[drawn]) == list(range(9))
        for k, shares in values.items():
            hits = 0
            for query in np.flatnonzero(~drawn):
                order = sorted(
                    np.flatnonzero(drawn), key=lambda each: float((embeddings[query] - embeddings[each]).norm())
                )
                hits += LABELS[query] in LABELS[order[:k]]
            shares.append(hits / (~drawn).sum())
    for k, shares in values.items():
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean(shares))
        assert found[f"recall_at_{k}_std"] == pytest.approx(np.std(shares, ddof=1))


def test_draws_are_uniform_and_of_their_seed():
    """Each image of a class is drawn as often as another; the same seed draws the same."""
    labels = np.repeat([0, 1], [4, 2])
    counts = sum(_one_each(labels, np.random.default_rng(seed)).astype(int) for seed in range(4000))
    np.testing.assert_allclose(counts / 4000, [0.25] * 4 + [0.5] * 2, atol=0.03)
    one, same, other = (official_measures(points(LABELS), LABELS, (1,), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_clusterings_are_those_of_scikit_learn():
    """NMI and AMI of seeded k-means with as many clusters as classes; mean and deviation."""
    embeddings = points(LABELS)
    found = clustering_measures(embeddings, LABELS, clusterings=5, seed=2)
    clusters = [kmeans(embeddings, 9, seed=2 + number)[0] for number in range(5)]
    for name, measure in [("nmi", normalized_mutual_info_score), ("ami", adjusted_mutual_info_score)]:
        values = [measure(LABELS, each) for each in clusters]
        assert found[name] == pytest.approx(np.mean(values))
        assert found[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize(("labels", "expected"), [([3, 3, 3], 1.0), ([0, 1, 2, 3], 1.0)])
def test_one_class_or_a_class_an_image(labels, expected):
    """There is one way to cluster them, and it is right; one clustering has no deviation."""
    found = clustering_measures(points(np.array(labels)), np.array(labels), clusterings=1)
    assert (found["nmi"], found["nmi_std"]) == (pytest.approx(expected), 0.0)


def test_queries_are_searched_in_the_gallery_alone():
    """A query's twin among the queries is no hit; all images are clustered together."""
    vectors = {"q0": [1.0, 0], "q1": [1.0, 0], "g0": [0, 1.0], "g1": [0.9, 0.1]}
    test = EvaluationSet("test", images(["q0", "q1"], [0, 0]), images(["g0", "g1"], [0, 1]), (1, 2))

    def embed(listed):
        return F.normalize(torch.tensor([vectors[path] for path in listed.paths]), dim=1), listed.labels

    (found,) = final_measures(embed, (test,), official=False, clusterings=2)
    assert found.protocol == "gallery"
    assert (found.measures["recall_at_1"], found.measures["recall_at_2"]) == (0.0, 1.0)
    assert "nmi" in found.measures


def test_each_image_is_embedded_once():
    """VehicleID's smaller lists are parts of the larger one; each set is measured by both protocols."""
    paths = [f"{number}.jpg" for number in range(len(LABELS))]
    vectors = points(LABELS)
    calls = []

    def embed(listed):
        calls.append(len(listed))
        return vectors[[paths.index(path) for path in listed.paths]], listed.labels

    small = np.flatnonzero(LABELS < 4)[::-1]
    sets = (
        EvaluationSet("2400", images(paths, LABELS), None, (1, 5)),
        EvaluationSet("800", images([paths[i] for i in small], LABELS[small]), None, (1, 5)),
    )
    found = list(final_measures(embed, sets, official=True, clusterings=0))
    assert calls == [len(LABELS)]
    names = [(each.name, each.protocol) for each in found]
    assert names == [("2400", "whole"), ("2400", "official"), ("800", "whole"), ("800", "official")]
    alone = final_measures(
        lambda listed: (vectors[small.copy()], listed.labels), sets[1:], official=True, clusterings=0
    )
    assert [each.measures for each in alone] == [each.measures for each in found[2:]]
    assert set(found[1].measures) == {"recall_at_1", "recall_at_1_std", "recall_at_5", "recall_at_5_std"}
