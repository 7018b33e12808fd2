import itertools
import json
from contextlib import suppress
from dataclasses import replace

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons
from dcml_tune.search.resume import recorded_space
from search_spaces import load_space
from search_spaces.constant import MAY_NOT_VARY
from search_spaces.space import Choice, Float, Int, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def space():
    return SearchSpace(
        name="emoji",
        published={"dataset": "emoji", "nb_epochs": 6, "force_full_embedding_epoch": 5, "nb_clusters": 32},
        domains={"nb_clusters": Choice([2, 4, 8, 16]), "mod_epoch": Int(1, 6), "masking_lambda": Float(1e-3, 1, log=True)},
    )  # fmt: skip


def too_many(most):
    return lambda config: f"nb_clusters={config.nb_clusters}: too many" if config.nb_clusters > most else None


@pytest.mark.parametrize("dataset", ["cub", "cars", "sop", "inshop", "vid", "emoji", "folder"])
def test_shipped_spaces_vary_the_four_settings(dataset):
    """What varies by default are the method's four settings, each with its reason."""
    space = load_space(dataset)
    assert list(space.domains) == ["nb_clusters", "mod_epoch", "masking_lambda", "mask_lr_mult"]
    assert set(space.why) == set(space.domains)
    assert space.domains["mask_lr_mult"].log
    assert space.published_point()[0]["nb_clusters"] in space.domains["nb_clusters"].values


def test_what_cannot_work_is_never_drawn(space):
    """Of 200 draws none fills its clusters only after the full-embedding phase begins, and none has too many."""
    restricted = space.restricted({}, too_many(8))
    assert restricted.domains["nb_clusters"].values == (2, 4, 8)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = set()
    for _ in range(200):
        chosen = restricted.suggest(study.ask(), too_many(8))
        assert restricted.refusal(chosen, too_many(8)) is None
        doublings = chosen["nb_clusters"].bit_length() - 1
        assert doublings * chosen["mod_epoch"] < 5
        drawn.add((chosen["nb_clusters"], chosen["mod_epoch"]))
    assert drawn == {(2, 1), (2, 2), (2, 3), (2, 4), (4, 1), (4, 2), (8, 1)}


def test_trial_0_is_the_published_setting_lowered_until_it_fits(space):
    """What had to be moved is said."""
    point, lines = space.restricted({"mod_epoch": 1}, too_many(8)).published_point(too_many(8))
    assert point["nb_clusters"] == 8
    assert any("nb_clusters" in line and "32" in line and "8" in line for line in lines)


def test_trial_0_takes_a_published_value_by_either_name():
    """The original's name of a loss and ours are the same value."""
    for published, other in [("margin", "MarginLoss"), ("MarginLoss", "margin")]:
        domains = {"criterion": Choice(["triplet", other])}
        space = SearchSpace(name="emoji", published={"criterion": published}, domains=domains).restricted({})
        assert space.published_point() == ({"criterion": other}, [])


def test_fixed_settings_do_not_vary(space):
    """A flag takes its setting out of the space; with all fixed there is nothing to search."""
    restricted = space.restricted({"mod_epoch": 2})
    assert "mod_epoch" not in restricted.domains
    assert restricted.published["mod_epoch"] == 2
    with pytest.raises(SettingError, match=r"dcml_tune\.train"):
        space.restricted({"mod_epoch": 2, "nb_clusters": 2, "masking_lambda": 0.1})


def test_a_space_that_cannot_work_is_refused(space):
    """The reason of the refusal is in the message."""
    with pytest.raises(SettingError, match=r"no combination of nb_clusters .* can work: nb_clusters=2: too many"):
        space.restricted({}, too_many(1))


def test_the_reason_is_the_one_that_the_smallest_change_removes():
    """It is true, and the remedy works: one epoch more lets two clusters be reached."""
    with pytest.raises(SettingError) as refused:
        load_space("folder").restricted({"nb_epochs": 2})
    said = str(refused.value)
    assert "nb_epochs=2: must be more than 2" in said
    assert said.endswith("it works with nb_epochs=3")
    assert load_space("folder").restricted({"nb_epochs": 3}).published_point()[0]["nb_clusters"] == 2


@pytest.mark.parametrize("classes", [10, 33, 400])
@pytest.mark.parametrize("nb_epochs", [*range(2, 14), 17, 24, 30])
def test_a_short_search_is_refused_only_where_nothing_works(nb_epochs, classes):
    """With the rules of `folder`, and of so many classes; trial 0 is one that works."""

    def infeasible_reason(config):
        return "too few classes" if 2 * config.nb_clusters > classes else None

    space, fixed = load_space("folder"), {"nb_epochs": nb_epochs}
    working = set(brute_force(replace(space, published=space.published | fixed), infeasible_reason))
    if not working:
        with pytest.raises(SettingError, match="can work"):
            space.restricted(fixed, infeasible_reason)
        return
    restricted = space.restricted(fixed, infeasible_reason)
    assert set(restricted.domains["nb_clusters"].values) == {clusters for clusters, *_ in working}
    assert restricted.refusal(restricted.published_point(infeasible_reason)[0], infeasible_reason) is None


def brute_force(space, infeasible_reason=None):
    """The combinations of finite domains that work, by building each setting."""
    finite = {n: d for n, d in space.domains.items() if not isinstance(d, Float)}
    values = [d.values if isinstance(d, Choice) else range(d.low, d.high + 1) for d in finite.values()]
    for found in itertools.product(*values):
        if space.refusal(dict(zip(finite, found, strict=True)), infeasible_reason) is None:
            yield found


def whole_numbers(name, low, high):
    """Domains of a setting: some of its values, or a range of them."""
    ranges = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda ends: Int(min(ends), max(ends)))
    few = st.lists(st.integers(low, high), min_size=1, max_size=3, unique=True).map(Choice)
    return st.tuples(st.just(name), st.one_of(ranges, few))


VARIED = [
    whole_numbers("nb_epochs", 1, 9),
    whole_numbers("mod_epoch", 1, 5),
    whole_numbers("mod_epoch_freeze", 0, 3),
    whole_numbers("batch_size", 2, 9),
    whole_numbers("num_samples_per_class", 1, 4),
    st.tuples(st.just("nb_clusters"), st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, unique=True).map(Choice)),
    st.tuples(st.just("hierarchy_method"), st.just(Choice(["top_bot", "none"]))),
    st.tuples(st.just("batch_sampler"), st.just(Choice(["npairs", "randombatch", "adaptbalanced"]))),
    st.tuples(st.just("force_full_embedding_epoch"), st.just(Choice([None, 0, 3, 6]))),
    st.tuples(st.just("criterion"), st.just(Choice(["MarginLoss", "npairs"]))),
    st.tuples(st.just("masking_lambda"), st.just(Float(0.1, 1))),
]
SPACES = st.lists(st.one_of(VARIED), min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(dict)
PUBLISHED = st.fixed_dictionaries(
    {"nb_epochs": st.integers(1, 9), "mod_epoch": st.integers(1, 5), "nb_clusters": st.sampled_from([1, 2, 4, 6])}
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPACES, PUBLISHED, st.integers(1, 8), st.integers(0, 10**6))
def test_a_space_is_refused_exactly_where_nothing_works(domains, published, most, seed):
    """Against every combination, built one by one, for rules that are not monotone: choices, trial 0 and draws, too."""
    infeasible_reason = too_many(most)
    space = SearchSpace(name="emoji", published=published, domains=domains)
    finite = [name for name, domain in domains.items() if not isinstance(domain, Float)]
    working = set(brute_force(space, infeasible_reason))
    if not working:
        with pytest.raises(SettingError, match=r".+: .+"):
            space.restricted({}, infeasible_reason)
        return
    restricted = space.restricted({}, infeasible_reason)
    for place, name in enumerate(finite):
        if isinstance(domains[name], Choice):
            assert set(restricted.domains[name].values) == {found[place] for found in working}, name
    assert restricted.refusal(restricted.published_point(infeasible_reason)[0], infeasible_reason) is None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    with suppress(SettingError):
        chosen = restricted.suggest(study.ask(), infeasible_reason)
        assert tuple(chosen[name] for name in finite) in working
    for line in restricted.unused_settings():
        name = line.split(" varies and has no effect")[0]
        points = [dict(zip(finite, found, strict=True)) for found in brute_force(restricted)]
        for point in points:
            assert name in unused_reasons(TrialConfig(**{"dataset": "emoji", **published, **point})), (name, point)


def test_a_setting_is_not_said_to_be_idle_because_of_one_number_of_clusters():
    """With 300 values of others before it, some combination that has clusters uses it."""
    domains = {
        "nb_clusters": Choice([1, 2]),
        "batch_size": Int(8, 300),
        "mod_epoch": Int(1, 2),
        "masking_lambda": Float(0.1, 1),
        "stop_recluster": Choice([False, True]),
    }
    space = SearchSpace(name="emoji", published={"nb_epochs": 9, "num_samples_per_class": 4}, domains=domains)
    assert space.unused_settings() == []
    alone = replace(space, domains={**domains, "nb_clusters": Choice([1])}).unused_settings()
    assert [line.split()[0] for line in alone] == ["mod_epoch", "masking_lambda", "stop_recluster"]


def test_a_space_too_large_to_try_is_not_refused():
    """Nothing is excluded by a part of its combinations."""
    ranges = {"sz_embedding": Int(2, 4000), "batch_size": Int(8, 4000), "num_samples_per_class": Int(7, 900)}
    space = SearchSpace(name="emoji", published={"nb_epochs": 9}, domains=ranges)
    assert space.restricted({}).domains == ranges


def test_fractions_never_exclude_anything():
    """A rule that a learning rate breaks at the ends and in the middle of its range may hold elsewhere."""
    space = SearchSpace(name="emoji", published={}, domains={"base_lr": Float(0.1, 0.3), "nb_clusters": Choice([1, 2])})
    picky = lambda config: None if 0.11 < config.base_lr < 0.12 else "base_lr: elsewhere"  # noqa: E731
    assert space.restricted({}, picky).domains == space.domains


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ([2, 4], "type list; write Choice"),
        ("2 to 4", "type str; write Choice"),
        (None, "type NoneType"),
        (Choice(["two"]), "nb_clusters=two: must be a valid integer"),
        (Choice(["2"]), "nb_clusters='2': write it as 2"),
        (Choice([2, 10**30]), "less than or equal to 65536"),
        (Int(0, 4), "greater than or equal to 1"),
        (Float(1, 4), "a whole number, and its domain a Float"),
    ],
)
def test_a_domain_that_is_none_is_refused(domain, words):
    """With the setting and what to write."""
    with pytest.raises(SettingError, match=words):
        SearchSpace(name="emoji", published={}, domains={"nb_clusters": domain})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choice("abc"), lambda: Choice(3), lambda: Choice([[1], [2]]), lambda: Choice([float("nan")]),
        lambda: Int(1.5, 2), lambda: Int("1", "2"), lambda: Int(True, 2), lambda: Float("a", "b"),
        lambda: Float(0, float("inf")), lambda: Float(None, 1),
    ],
)  # fmt: skip
def test_a_domain_of_what_is_no_value_is_refused(make):
    """Where it is made."""
    with pytest.raises(SettingError, match=r"must (have|hold)"):
        make()


PART_OF_A_RECIPE = {
    "image_store", "sz_resize", "sz_crop", "crop_scale", "album",
    "randaugment_ops", "randaugment_magnitude", "arch", "weights", "features_pooling", "features_dropout_prob",
    "bn_learnable", "sz_embedding", "init_method", "masking_init", "mask_relu", "fixed_mask", "masks_freeze_one_cluster",
    "masks_sum_for_full_emb", "masks_normalize_before_sum", "criterion", "margin", "beta", "nu", "lr_beta", "soft_loss",
    "alpha", "lr_alpha", "ms_alpha", "ms_beta", "ms_base", "ms_epsilon", "supcon_temperature", "contrastive_pos_margin",
    "contrastive_neg_margin", "pa_alpha", "pa_delta", "softmax_temperature", "arcface_margin", "arcface_scale",
    "proxy_lr_mult", "masking_lambda", "sampler", "cutoff", "batch_sampler", "batch_size", "num_samples_per_class",
    "small_class_action", "num_replicas", "nb_epochs", "nb_clusters", "mod_epoch", "mod_epoch_freeze",
    "freeze_without_division", "warmup_epochs", "force_full_embedding_epoch", "hierarchy_method", "stop_recluster", "reassign_random",
    "clustering_method", "penultimate_for_clusters", "optimizer", "base_lr", "emb_lr_mult", "mask_lr_mult",
    "mask_wd_mult", "weight_decay", "lr_decay", "lr_step", "lr_gamma", "average_epochs", "pretrained_share",
    "amp",
}  # fmt: skip


def test_it_is_decided_for_every_setting_whether_it_may_vary():
    """A new one is part of a recipe, or has its reason in `constant.MAY_NOT_VARY`."""
    assert PART_OF_A_RECIPE.isdisjoint(MAY_NOT_VARY)
    assert PART_OF_A_RECIPE | MAY_NOT_VARY.keys() == TrialConfig.model_fields.keys()


@pytest.mark.parametrize("setting", MAY_NOT_VARY)
def test_what_trials_are_compared_by_may_not_vary(setting):
    """In a space, a wider one, and one that an earlier version has recorded."""
    value = TrialConfig.model_fields[setting].default
    domain = Choice([value if value is not None else 1])
    with pytest.raises(SettingError, match=f"{setting} may not vary: "):
        SearchSpace(name="emoji", published={}, domains={setting: domain})
    with pytest.raises(SettingError, match=f"{setting} may not vary: "):
        load_space("emoji").widened(**{setting: domain})
    recorded = json.loads(json.dumps(load_space("emoji").as_json()))
    recorded["domains"][setting] = {"kind": "Choice", "values": [0, 1]}
    with pytest.raises(SettingError, match=f"{setting} may not vary: "):
        SearchSpace.from_json(recorded)


def test_a_users_file_widens_a_space(tmp_path):
    """The space of a file is the one that is searched."""
    file = tmp_path / "space.py"
    file.write_text(
        "from search_spaces.emoji import SPACE\nfrom search_spaces.space import Float\n"
        "SPACE = SPACE.widened(base_lr=Float(1e-5, 1e-3, log=True))\n"
    )
    assert list(load_space("emoji", file).domains)[-1] == "base_lr"


def test_a_setting_that_varies_in_vain_is_named():
    """With fixed masks nothing is to be searched in the masks; where some value of another makes it act, it is not named."""
    lines = load_space("folder").restricted({"fixed_mask": True}).unused_settings()
    assert [line.split(" varies and has no effect: ")[0] for line in lines] == ["masking_lambda", "mask_lr_mult"]
    assert load_space("folder").restricted({}).unused_settings() == []
    space = load_space("folder").widened(fixed_mask=Choice([False, True]))
    assert space.restricted({}).unused_settings() == []


def test_a_search_of_an_earlier_version_that_broke_the_seal_does_not_go_on():
    """It says why, and that a new one is to be started."""
    recorded = load_space("emoji").as_json()
    recorded["domains"]["protocol"] = {"kind": "Choice", "values": ["held_out", "paper"]}
    with pytest.raises(SettingError, match=r"--resume old: .*protocol may not vary: .*; .*start a new one"):
        recorded_space("old", recorded)
