import faiss
import numpy as np
import pytest

from dcml_tune.clustering import divide, drop_singles, kmeans, match


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3, 8])
def test_match_undoes_any_renumbering(seed, k):
    """A partition whose clusters are renumbered, 3-cycles included, is matched back entirely."""
    rng = np.random.default_rng(seed)
    previous = rng.integers(0, k, 200)
    assert np.array_equal(match(previous, rng.permutation(k)[previous]), previous)
    assert np.array_equal(match(previous, ((np.arange(k) + 1) % k)[previous]), previous)


def test_match_takes_the_largest_overlap():
    """The renumbering is that of the largest total overlap, and images without a cluster stay without."""
    previous = np.array([0, 0, 0, 1, 1, 1, -1, 2])
    current = np.array([2, 2, 0, 0, 0, 0, 1, -1])
    assert match(previous, current).tolist() == [0, 0, 1, 1, 1, 1, 2, -1]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("backend", ["faiss", "torch", "sklearn"])
def test_kmeans_is_as_good_as_faiss(seed, backend):
    """Every backend reaches the objective of Faiss' own k-means from the same start within 0.1 %."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 16)) * 4
    features = (centres[rng.integers(0, 6, 600)] + rng.normal(size=(600, 16))).astype(np.float32)
    labels, centroids = kmeans(features, 6, seed=seed, backend=backend)
    theirs = faiss.Kmeans(16, 6, niter=100, seed=seed, min_points_per_centroid=1, max_points_per_centroid=10**6)
    theirs.train(features)
    expected = theirs.index.search(features, 1)[0].sum()
    assert labels.dtype == np.int64
    assert ((features - centroids[labels]) ** 2).sum() <= expected * 1.001


def test_divide_keeps_every_image_with_its_parent():
    """Children of cluster k are 2k and 2k+1, every image stays in a child of its parent, and -1 stays."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 8)).astype(np.float32)
    labels = rng.integers(0, 10, 300)
    parents = rng.integers(0, 3, 300)
    parents[:5] = -1
    children = divide(features, parents, labels, seed=0)
    assert np.array_equal(children[5:] // 2, parents[5:])
    assert (children[:5] == -1).all()
    assert set(children[5:]) == set(range(6))


def test_drop_singles_by_loop():
    """An image alone of its class within its cluster leaves the partition, and no other does."""
    rng = np.random.default_rng(0)
    partition, labels = rng.integers(-1, 4, 200), rng.integers(0, 60, 200)
    expected = [
        p if p >= 0 and sum(partition[j] == p and labels[j] == labels[i] for j in range(200)) > 1 else -1
        for i, p in enumerate(partition)
    ]
    assert drop_singles(partition, labels).tolist() == expected
