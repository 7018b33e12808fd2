"""K-means, matching, division and the reclustering of an epoch, against Faiss, scikit-learn and loops."""

import itertools
import logging

import faiss
import naive_measures as naive
import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

import dcml_tune.clustering.partition as partition_module
from dcml_tune.clustering import faiss_backend, lloyd
from dcml_tune.clustering.kmeans import _first_images, kmeans
from dcml_tune.clustering.partition import acceptable, cluster, divide, drop_singles, match
from dcml_tune.clustering.reclustering import recluster
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig

BACKENDS = ["faiss", "torch", "sklearn", "auto"]


def groups(n, centres, dim, seed, noise=0.3):
    """Unit rows around centres, and the number of each row's centre."""
    rng = np.random.default_rng(seed)
    own = rng.integers(centres, size=n)
    rows = rng.normal(size=(centres, dim))[own] + noise * rng.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), own


def faiss_kmeans(features, k, *, seed, niter):
    """Faiss's own k-means, initial images and updates included."""
    n, dim = features.shape
    model = faiss.Kmeans(dim, k, niter=niter, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n)
    model.train(features)
    return model.assign(features)[1], model.centroids


# -- k-means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "dim", "k"), [(900, 24, 2), (1500, 32, 12), (600, 8, 150)])
def test_torch_gives_the_labels_of_faiss(n, dim, k, seed, monkeypatch):
    """Same images to start from, same iterations, same labels: our two backends, and Faiss's own k-means."""
    features, _ = groups(n, 20, dim, seed, noise=0.6)
    ours = {backend: kmeans(features, k, seed=seed, backend=backend) for backend in ("faiss", "torch")}
    np.testing.assert_array_equal(ours["torch"][0], ours["faiss"][0])
    np.testing.assert_allclose(ours["torch"][1], ours["faiss"][1], atol=1e-5)
    monkeypatch.setattr(lloyd, "LEAST_GAIN", -np.inf)
    for niter in (1, 4):
        monkeypatch.setattr(lloyd, "MAX_ITERATIONS", niter)
        labels, centroids = faiss_kmeans(features, k, seed=seed, niter=niter)
        found = kmeans(features, k, seed=seed, backend="torch")
        np.testing.assert_array_equal(found[0], labels)
        np.testing.assert_allclose(found[1], centroids, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_empty_clusters_are_filled_as_in_faiss(seed, monkeypatch):
    """Copies among the initial images leave clusters empty; these take the same halves as in Faiss."""
    features, _ = groups(400, 30, 8, seed)
    features[:80] = features[0]
    monkeypatch.setattr(lloyd, "MAX_ITERATIONS", 1)
    _, centroids = faiss_kmeans(features, 60, seed=seed, niter=1)
    start = features[_first_images(400, 60, seed).numpy()]
    assert len(np.unique(start, axis=0)) < 60, "no cluster was empty: the case is not met"
    np.testing.assert_allclose(kmeans(features, 60, seed=seed, backend="torch")[1], centroids, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_iterations_equal_those_of_a_loop(backend, monkeypatch):
    """Two iterations from given centroids give a loop's clusters and centroids."""
    features, _ = groups(60, 5, 4, 3, noise=0.8)
    monkeypatch.setattr(lloyd, "LEAST_GAIN", 0)
    monkeypatch.setattr(lloyd, "MAX_ITERATIONS", 2)
    labels, centroids = kmeans(features, 5, seed=0, backend=backend, init=features[:5])
    expected_labels, expected_centroids = naive.lloyd(features, features[:5], 2)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(centroids, expected_centroids, atol=1e-5)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("n", "centres", "dim", "k", "noise", "share"),
    [
        (600, 20, 32, 4, 0.6, 0.001),
        (4000, 100, 64, 32, 0.5, 0.001),
        # Without clusters to find, k-means creeps for a hundred iterations: the stop costs up to half a percent.
        (3000, 40, 16, 16, 3.0, 0.01),
    ],
)
def test_early_stop_costs_little_of_the_objective(n, centres, dim, k, noise, share, seed, backend):
    """The objective is that after Faiss's 100 iterations from the same images, but for a small share of it."""
    features, _ = groups(n, centres, dim, seed, noise=noise)
    labels, centroids = kmeans(features, k, seed=seed, backend=backend)
    to_the_end = naive.objective(features, *faiss_kmeans(features, k, seed=seed, niter=100))
    assert naive.objective(features, labels, centroids) <= (1 + share) * to_the_end


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_and_centroids_belong_together(backend):
    """Types and shapes are those agreed; a label is the nearest centroid; the input is left alone."""
    features, _ = groups(200, 6, 5, 1)
    before = features.copy()
    labels, centroids = kmeans(features, 6, seed=3, backend=backend)
    assert (labels.dtype, labels.shape) == (np.int64, (200,))
    assert (centroids.dtype, centroids.shape) == (np.float32, (6, 5))
    np.testing.assert_array_equal(labels, naive.nearest(features, centroids))
    np.testing.assert_array_equal(features, before)


def test_seeds_give_different_clusters_and_repeat_their_own():
    """The seed alone decides; the global random state plays no part."""
    features, _ = groups(500, 30, 8, 2, noise=1.0)
    torch.manual_seed(0)
    first = kmeans(features, 10, seed=4)[0]
    torch.manual_seed(1)
    np.testing.assert_array_equal(kmeans(features, 10, seed=4)[0], first)
    assert (kmeans(features, 10, seed=5)[0] != first).any()


def test_tensors_and_other_number_types_are_taken():
    """A tensor that needs a gradient, double precision, rows out of order in memory, an array not to be written."""
    features, _ = groups(150, 4, 6, 5)
    expected = kmeans(features, 4, seed=0)[0]
    sealed = features.copy()
    sealed.flags.writeable = False
    for given in (
        torch.from_numpy(features).requires_grad_(),
        torch.from_numpy(features).double(),
        np.asfortranarray(features.astype(np.float64)),
        sealed,
    ):
        np.testing.assert_array_equal(kmeans(given, 4, seed=0)[0], expected)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    """How many images are compared with the centroids at once changes nothing."""
    features, _ = groups(300, 8, 6, 5)
    expected = kmeans(features, 8, seed=0, backend="torch")[0]
    monkeypatch.setattr(lloyd, "MAX_ENTRIES", 100)
    np.testing.assert_array_equal(kmeans(features, 8, seed=0, backend="torch")[0], expected)


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


def test_one_hot_products_sum_like_additions_at_indices(monkeypatch):
    """The two ways to sum a cluster's images, for a GPU and for the CPU, agree."""
    features, own = groups(500, 7, 9, 1)
    x, labels = torch.from_numpy(features), torch.from_numpy(own)
    monkeypatch.setattr(lloyd, "MAX_ENTRIES", 700)
    sums, counts = lloyd.cluster_sums(x.as_subclass(OnGPU), labels, 7)
    expected_sums, expected_counts = lloyd.cluster_sums(x, labels, 7)
    np.testing.assert_allclose(sums.numpy(), expected_sums.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(counts.numpy(), expected_counts.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "faiss-gpu"])
def test_a_gpu_gives_the_labels_of_the_cpu_and_gives_its_memory_back(backend):
    """Same labels; what Faiss takes on the GPU is free again after the call."""
    if backend == "faiss-gpu" and faiss.get_num_gpus() == 0:
        pytest.skip("Faiss cannot use this GPU")
    features, _ = groups(3000, 20, 64, 0)
    on_gpu = torch.from_numpy(features).cuda()
    kmeans(on_gpu, 12, seed=1, backend=backend)
    free = torch.cuda.mem_get_info()[0]
    labels, _ = kmeans(on_gpu, 12, seed=1, backend=backend)
    np.testing.assert_array_equal(labels, kmeans(features, 12, seed=1, backend="faiss")[0])
    assert torch.cuda.mem_get_info()[0] >= free - (32 << 20)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 7])
def test_one_cluster_and_a_cluster_an_image(backend, k):
    """K = 1 gives the mean; K = N gives each image its own cluster."""
    features, _ = groups(7, 3, 4, 0)
    labels, centroids = kmeans(features, k, seed=0, backend=backend)
    assert len(set(labels.tolist())) == k
    expected = features.mean(0, keepdims=True) if k == 1 else features[np.argsort(labels)]
    np.testing.assert_allclose(centroids, expected, atol=1e-6)


def test_faiss_is_silent_and_leaves_its_threads_as_they_were(capfd):
    """Few images a cluster print no warning, and the caller's number of Faiss threads comes back."""
    before = faiss.omp_get_max_threads()
    kmeans(groups(50, 3, 4, 0)[0], 20, seed=0, backend="faiss")
    assert capfd.readouterr() == ("", "")
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize(
    ("features", "k", "keywords", "said"),
    [
        (np.eye(3), 4, {}, "k=4 and 3 images"),
        (np.eye(3), 0, {}, "k=0"),
        (np.zeros((0, 3)), 1, {}, "0 images"),
        (np.ones(3), 1, {}, r"shape \(3,\)"),
        (np.array([[1.0], [np.nan], [np.inf]]), 2, {}, "2 of 3 images are not finite"),
        (np.array([[1.0], [-np.inf], [np.inf]]), 2, {}, "2 of 3 images are not finite"),
        (np.eye(3), 2, {"backend": "fais"}, "'fais' is not known; did you mean 'faiss'"),
        (np.eye(3), 2, {"init": np.eye(2)}, r"init must have shape \(2, 3\)"),
    ],
)
def test_wrong_input_is_refused(features, k, keywords, said):
    """One line names what is wrong."""
    with pytest.raises(ValueError, match=said) as error:
        kmeans(features, k, seed=0, **keywords)
    assert "\n" not in str(error.value)


def test_features_whose_sum_is_not_finite_are_taken():
    """Only features that are not finite themselves are refused."""
    assert kmeans(np.full((3, 1), 3e38), 3, seed=0)[0].tolist() == [0, 1, 2]


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="Faiss has a GPU here")
@pytest.mark.parametrize(
    ("free", "cap", "taken", "expected"),
    [
        (80 << 30, 40 << 30, 10 << 30, 256 << 20),  # much is left: the most that is ever taken
        (80 << 30, 1 << 30, (1 << 30) - (400 << 20), 100 << 20),  # a quarter of what the cap leaves
        (200 << 20, 40 << 30, 1 << 30, 50 << 20),  # a quarter of what others leave
        (80 << 30, 1 << 30, 2 << 30, 0),  # nothing is left
    ],
)
def test_faiss_takes_a_part_of_the_trials_share(free, cap, taken, expected):
    """Of what is left on the GPU and of the trial's own cap, a quarter at most."""
    assert faiss_backend._faiss_bytes(free, cap, taken) == expected


def test_faiss_gpu_without_a_gpu_is_refused_with_the_remedy():
    """A setting of another machine says what to take here."""
    with pytest.raises(ValueError, match="backend='auto'"):
        kmeans(np.eye(3), 2, seed=0, backend="faiss-gpu")


# -- matching ----------------------------------------------------------------------------------------------


def test_match_restores_a_cycle_of_three():
    """The right permutation, not its inverse: all images get their number back."""
    previous = np.repeat([0, 1, 2], 5)
    np.testing.assert_array_equal(match(previous, (previous + 1) % 3), previous)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [2, 3, 8, 64])
def test_match_restores_any_permutation(k, seed):
    """However the clusters are numbered, each gets its previous number."""
    rng = np.random.default_rng(seed)
    previous = rng.integers(k, size=50 * k)
    np.testing.assert_array_equal(match(previous, rng.permutation(k)[previous]), previous)


@pytest.mark.parametrize("seed", range(8))
def test_match_keeps_as_many_images_as_any_numbering_can(seed):
    """The overlap is the largest of all permutations'; -1 on either side counts for nothing and stays."""
    rng = np.random.default_rng(seed)
    previous, current = rng.integers(-1, 4, size=(2, 40))
    matched = match(previous, current)
    assert ((matched == previous) & (previous >= 0)).sum() == naive.best_overlap(previous, current, 4)
    np.testing.assert_array_equal(matched < 0, current < 0)
    assert normalized_mutual_info_score(matched, current) == pytest.approx(1)


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        ([0, 0, 0, 1, 1, 1, -1, 2], [2, 2, 0, 0, 0, 0, 1, -1], [0, 0, 1, 1, 1, 1, 2, -1]),
        ([0, 0, 1, 1], [2, 2, 0, 0], [0, 0, 1, 1]),  # an empty cluster between
        ([0, 0, 0, 1, 1], [2, 2, 0, 1, 1], [0, 0, 2, 1, 1]),  # a third cluster takes the next number
        ([2, 2, 1, 1, 0], [0, 0, 1, 1, 1], [2, 2, 1, 1, 1]),  # two clusters take two of three numbers
        ([-1, -1, -1], [1, 0, 1], [1, 0, 1]),  # nothing to match
        ([0, 1], [-1, -1], [-1, -1]),
        ([], [], []),
    ],
)
def test_match_of_unequal_numbers_of_clusters(previous, current, expected):
    """What is left over takes numbers after the previous ones; numbers without a match stay free."""
    assert match(previous, current).tolist() == expected


def test_match_refuses_partitions_of_other_images():
    """A line says how long the two are."""
    with pytest.raises(ValueError, match="3 and 2"):
        match([0, 1, 2], [0, 1])


# -- acceptable clusters and single images -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_singles_and_acceptance_equal_those_of_loops(seed):
    """Dropping images alone of their class, and the rule of two classes of two, over random partitions."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 30))
    partition, labels = rng.integers(-1, 3, size=60), rng.integers(classes, size=60) * 100
    dropped = drop_singles(partition, labels)
    assert dropped.tolist() == naive.drop_singles(partition, labels)
    for given in (partition, dropped, rng.permutation(partition)[:12]):
        assert acceptable(given, labels[: len(given)], 3) == naive.acceptable(given, labels[: len(given)], 3)


def test_a_cluster_that_no_image_is_in_is_not_acceptable():
    """An empty cluster counts, the last one as well."""
    labels = [0, 0, 1, 1]
    assert acceptable([0, 0, 0, 0], labels, 1)
    assert not acceptable([0, 0, 0, 0], labels, 2)
    assert not acceptable([1, 1, 1, 1], labels, 2)
    assert not acceptable([-1, -1, -1, -1], labels, 1)


@pytest.fixture
def tried(monkeypatch):
    """The seeds and initial centroids that k-means is asked for."""
    calls = []

    def recorded(features, k, *, seed, backend="auto", init=None):
        calls.append((seed, init))
        return kmeans(features, k, seed=seed, backend=backend, init=init)

    monkeypatch.setattr(partition_module, "kmeans", recorded)
    return calls


def test_cluster_takes_the_first_seed_that_is_acceptable(tried, caplog):
    """Seeds follow each other until every cluster will do; initial centroids serve the first alone."""
    features, own = groups(40, 12, 3, 6, noise=0.1)
    good = [acceptable(kmeans(features, 4, seed=seed)[0], own, 4) for seed in range(100)]
    first = next(seed for seed in range(90) if not good[seed] and not good[seed + 1])
    found = good.index(True, first)
    partition, centroids = cluster(features, own, 4, seed=first)
    assert [seed for seed, _ in tried] == list(range(first, found + 1))
    expected = kmeans(features, 4, seed=found)
    np.testing.assert_array_equal(partition, expected[0])
    np.testing.assert_array_equal(centroids, expected[1])
    assert not caplog.records
    tried.clear()
    cluster(features, own, 4, seed=first, init=features[_first_images(40, 4, first).numpy()])
    assert [(seed, init is None) for seed, init in tried] == [(s, s > first) for s in range(first, found + 1)]


def test_cluster_takes_the_last_of_thirty_with_a_warning(tried, caplog):
    """Where no seed will do the last is taken, and a line says so."""
    features, _ = groups(20, 4, 3, 0)
    with caplog.at_level(logging.WARNING, logger="dcml_tune.clustering"):
        partition, _ = cluster(features, np.arange(20), 2, seed=7)
    assert [seed for seed, _ in tried] == list(range(7, 37))
    np.testing.assert_array_equal(partition, kmeans(features, 2, seed=36)[0])
    (record,) = caplog.records
    assert "30 seeds from 7" in record.getMessage()


# -- division ----------------------------------------------------------------------------------------------


def test_divide_keeps_every_image_under_its_parent():
    """The children of k are 2k and 2k + 1, the 2-means of its own images; -1 stays -1."""
    features, own = groups(400, 16, 8, 0)
    partition = own % 4
    partition[::17] = -1
    children = divide(features, partition, own, seed=1)
    np.testing.assert_array_equal(children[partition < 0], -1)
    assert set(children[children >= 0].tolist()) == set(range(8))
    for parent in range(4):
        members = partition == parent
        expected, _ = cluster(features[members], own[members], 2, seed=1)
        np.testing.assert_array_equal(children[members] - 2 * parent, expected)


def test_divide_goes_on_where_a_cluster_cannot_be_split(caplog):
    """A cluster of one image, of none, or of one class: every image is kept, with a warning."""
    features, _ = groups(9, 3, 4, 0)
    partition = np.array([0, 0, 0, 0, 0, 0, 2, 3, 3])
    with caplog.at_level(logging.WARNING, logger="dcml_tune.clustering"):
        children = divide(features, partition, np.zeros(9), seed=0)
    np.testing.assert_array_equal(children // 2, partition)
    assert sum("cannot be divided" in record.getMessage() for record in caplog.records) == 2


# -- the reclustering of an epoch --------------------------------------------------------------------------


def run(epochs, features, own, **settings):
    """Recluster in every epoch as a trainer does: the plan and what was found, epoch by epoch."""
    config = TrialConfig(nb_epochs=epochs, mod_epoch=1, **settings)
    found, previous = [], None
    for plan in (EpochPlan.at(epoch, config) for epoch in range(epochs)):
        clusters = recluster(features, own, plan, previous, config=config)
        previous = clusters.assignment
        found.append((plan, clusters))
    return found


def test_clusters_double_and_children_follow_their_parents():
    """From one cluster to eight: each time clustered anew, matched with the previous ones, then divided."""
    features, own = groups(800, 32, 16, 0)
    found = run(5, features, own, nb_clusters=8, seed=3)
    assert [clusters.assignment.max() + 1 for _, clusters in found] == [1, 2, 4, 8, 8]
    assert (found[0][1].partition == 0).all()
    assert [clusters.nmi_previous is None for _, clusters in found] == [True, True, False, False, False]
    for (_, before), (plan, after) in itertools.pairwise(found):
        k = plan.nb_clusters // 2 if plan.divide else plan.nb_clusters
        anew = cluster(features, own, k, seed=3)[0]
        matched = match(before.assignment, anew)
        assert k < 4 or (matched != anew).any(), "already in order: the case is not met"
        np.testing.assert_array_equal(after.assignment // 2 if plan.divide else after.assignment, matched)
        np.testing.assert_array_equal(after.partition, drop_singles(after.assignment, own))


@pytest.mark.parametrize("reassign_random", [False, True])
def test_matching_is_left_out_when_random_numbers_are_asked_for(reassign_random):
    """With `reassign_random` clusters stay in the order in which k-means finds them."""
    features, _ = groups(300, 8, 8, 1)
    own = np.arange(300) % 10  # every cluster holds some of each: the first seed will do
    config = TrialConfig(nb_clusters=4, nb_epochs=3, hierarchy_method="none", reassign_random=reassign_random)
    found = kmeans(features, 4, seed=config.seed)[0]
    previous = (found + 1) % 4
    clusters = recluster(features, own, EpochPlan.at(0, config), previous, config=config)
    np.testing.assert_array_equal(clusters.assignment, found if reassign_random else previous)
    assert clusters.nmi_previous == pytest.approx(1)


def test_nmi_compares_the_previous_clusters_with_the_new_before_division():
    """The same number as scikit-learn's for the clusters that the division starts from."""
    features, own = groups(400, 24, 8, 2, noise=0.6)
    config = TrialConfig(nb_clusters=4, mod_epoch=1, nb_epochs=4)
    previous = np.where(features[:, 0] > 0, 1, 0)
    clusters = recluster(features, own, EpochPlan.at(2, config), previous, config=config)
    expected = normalized_mutual_info_score(previous, clusters.assignment // 2)
    assert 0.01 < expected < 0.99
    assert clusters.nmi_previous == pytest.approx(expected, abs=1e-9)


def test_merging_clusters_anew_into_half_as_many():
    """`bot_top` runs plain k-means into K / 2, unmatched, down to one cluster with all images."""
    features, own = groups(400, 16, 8, 3)
    found = run(4, features, own, nb_clusters=4, hierarchy_method="bot_top")
    assert [clusters.assignment.max() + 1 for _, clusters in found] == [4, 2, 1, 1]
    halves = kmeans(features, 2, seed=1)[0]
    np.testing.assert_array_equal(found[1][1].assignment, halves)
    assert (found[2][1].partition == 0).all()
    # Even where the previous clusters would have it the other way round.
    config = TrialConfig(nb_clusters=4, nb_epochs=4, mod_epoch=1, hierarchy_method="bot_top")
    again = recluster(features, own, EpochPlan.at(1, config), 1 - halves, config=config)
    np.testing.assert_array_equal(again.assignment, halves)


def test_seeds_are_one_a_trial_or_fresh_by_clustering_random_state(tried):
    """Without it each clustering starts from the trial's seed; with it from another each epoch, repeatably."""
    features, own = groups(400, 8, 8, 0)

    def first_seeds(**settings):
        seeds = []
        config = TrialConfig(nb_clusters=2, nb_epochs=9, mod_epoch=1, hierarchy_method="none", **settings)
        for epoch in range(4):
            tried.clear()
            recluster(features, own, EpochPlan.at(epoch, config), None, config=config)
            seeds.append(tried[0][0])
        return seeds

    assert first_seeds(seed=5) == [5, 5, 5, 5]
    fresh = first_seeds(seed=5, clustering_random_state=3)
    assert len(set(fresh)) == 4
    assert first_seeds(seed=6, clustering_random_state=3) == fresh
    assert first_seeds(seed=5, clustering_random_state=4) != fresh


def test_adaptive_centroids_start_from_the_previous_clusters_in_the_new_features(tried):
    """The first k-means starts from k-means++, later ones from the previous clusters' means."""
    features, own = groups(300, 12, 8, 4)
    config = TrialConfig(
        nb_clusters=3, nb_epochs=3, hierarchy_method="none", clustering_method="kmeans_adaptive_centroids"
    )
    plan = EpochPlan.at(0, config)
    before = recluster(features, own, plan, None, config=config).assignment
    assert {tuple(row) for row in tried[0][1]} <= {tuple(row) for row in features}
    tried.clear()
    moved = features[:, ::-1].copy()
    recluster(moved, own, plan, before, config=config)
    np.testing.assert_allclose(tried[0][1], [moved[before == j].mean(0) for j in range(3)], atol=1e-5)


def test_adaptive_clusterings_without_previous_centroids_start_from_images_apart(tried):
    """As in the original: further tries, and the division of each cluster in two, start from k-means++."""
    features, own = groups(400, 12, 8, 4)
    config = TrialConfig(nb_clusters=4, nb_epochs=9, mod_epoch=1, clustering_method="kmeans_adaptive_centroids")
    recluster(features, own, EpochPlan.at(1, config), np.zeros(400, np.int64), config=config)
    assert tried
    images = {tuple(row) for row in features.tolist()}
    for _, init in tried:
        assert {tuple(row) for row in init.tolist()} <= images
        assert (init[0] != init[1]).any()
    tried.clear()
    # Centroids of which no try is acceptable: two images to a class.
    cluster(features[:8], np.arange(8), 2, seed=0, init=features[:2], spread=True)
    assert [init is not None for _, init in tried] == [True] * partition_module.TRIES


def test_one_cluster_leaves_out_images_alone_of_their_class():
    """As in the original; a loop over images says the same."""
    labels = np.array([3, 1, 3, 7, 1, 1, 9])
    found = recluster(np.eye(7), labels, EpochPlan.at(0, TrialConfig()), None, config=TrialConfig())
    assert found.partition.tolist() == [0 if sum(y == labels) > 1 else -1 for y in labels]
    assert found.assignment.tolist() == [0] * 7


def test_features_may_be_tensors():
    """Tensors of features give what arrays of them give, through division and adaptive centroids."""
    features, own = groups(300, 12, 8, 5)
    settings = {"nb_clusters": 4, "clustering_method": "kmeans_adaptive_centroids"}
    arrays = run(4, features, own, **settings)
    tensors = run(4, torch.from_numpy(features), own, **settings)
    for (_, one), (_, other) in zip(arrays, tensors, strict=True):
        np.testing.assert_array_equal(one.partition, other.partition)
