"""Which settings of a winner are put back, in what order, and what is said about it."""

import json

import optuna
import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons
from dcml_tune.runs.importance import importance
from dcml_tune.runs.study import KEY
from dcml_tune.search.ablation import Ablation, reference
from dcml_tune.search.confirmation import PUBLISHED, Candidate, Confirmation, FoldSeed
from dcml_tune.search.reversions import Reversion, reversions
from search_spaces import Choice, Float, SearchSpace, load_space
from trainables.known_trial import KnownTrial

optuna.logging.set_verbosity(optuna.logging.WARNING)
METRIC = "val/recall_at_1"
ONE, TWO = FoldSeed(1, 1), FoldSeed(2, 2)
DATASETS = ["cub", "cars", "sop", "inshop", "vid", "emoji", "folder"]


def refusal(settings):
    try:
        TrialConfig(**settings)
    except SettingError as error:
        return str(error)
    return None


def points(space, draws):
    """The published point, the starts, and random points of a space."""
    published = space.published_point()[0]
    found = [published, *space.start_points(published)[0]]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(draws):
        try:
            found.append(space.suggest(study.ask()))
        except SettingError:
            continue
    return found


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_difference_that_acts_is_put_back_once(dataset):
    """In all published wide spaces: what is put back works, is the published value, and nothing else changes."""
    space = load_space(dataset, "wide").restricted({})
    published = space.whole(space.published_point()[0])
    theirs = TrialConfig(**published).model_dump()
    for point in points(space, 12):
        winner = space.whole(point)
        ours = TrialConfig(**winner).model_dump()
        unused = unused_reasons(TrialConfig(**winner))
        found, left_out = reversions(space, winner, published, {}, refusal)
        for each in found:
            config = TrialConfig(**each.config).model_dump()
            assert {name for name in config if config[name] != ours[name]} == set(each.changes)
            assert all(config[name] == theirs[name] != ours[name] for name in each.changes)
            assert each.setting not in unused
        named = {each.setting for each in found} | {line.split()[0] for line in left_out}
        assert len(named) == len(found) + len(left_out)
        differing = {name for name in ours if ours[name] != theirs[name] and name not in unused}
        assert differing <= named.union(*(each.changes for each in found))


CASES = [  # settings of the winner, groups (the first setting names one)
    ({}, []),
    ({"base_lr": 3e-4}, [["base_lr"]]),
    ({"criterion": "multi_similarity", "ms_alpha": 1.0, "ms_beta": 40.0, "ms_base": 0.7},
     [["criterion", "ms_alpha", "ms_beta", "ms_base"]]),
    ({"margin": 0.1, "lr_beta": 1e-3}, [["margin"], ["lr_beta"]]),
    ({"nb_clusters": 1}, [["nb_clusters"]]),
    ({"nb_clusters": 2, "mod_epoch": 3}, [["nb_clusters", "mod_epoch"], ["mod_epoch"]]),  # 4 clusters leave no time for 3
    ({"fixed_mask": True}, [["fixed_mask"]]),
    ({"masking_lambda": 0.1, "mask_lr_mult": 2.0}, [["masking_lambda"], ["mask_lr_mult"]]),
    ({"nb_clusters": 1, "masking_lambda": 0.1}, [["nb_clusters", "masking_lambda"]]),  # it does not act in the winner
]  # fmt: skip


@pytest.mark.parametrize(("settings", "groups"), CASES)
def test_settings_that_belong_together_are_one_group(settings, groups):
    """Those that act only with another one go with it; a group takes with it what it needs."""
    space = load_space("emoji", "wide").restricted({})
    point = space.published_point()[0]
    winner = {**space.whole(point), **settings}
    found, left_out = reversions(space, winner, space.whole(point), {}, refusal)
    assert left_out == []
    assert sorted([each.setting, *sorted(list(each.changes)[1:])] for each in found) == sorted(
        [first, *sorted(more)] for first, *more in groups
    )


def test_sizes_of_photographs_are_one_choice():
    """The size of the image, and of the crop; text and key name the setting."""
    space = load_space("cub", "wide").restricted({})
    published = space.whole(space.published_point()[0])
    winner = {**published, "sz_resize": 320, "sz_crop": 288, "weight_decay": 1e-3}
    found, _ = reversions(space, winner, published, {"sz_crop": 0.4, "weight_decay": 0.3}, refusal)
    assert [str(each) for each in found] == [
        "sz_resize 320 -> 256 with sz_crop 288 -> 224",
        "weight_decay 0.001 -> 0.0001",
    ]
    assert found[0].slug.startswith("sz_resize-")
    assert len({each.slug for each in found}) == 2


def test_what_cannot_work_is_left_out_with_the_reason():
    """Here the images allow the published value with no other setting."""
    space = load_space("emoji", "wide").restricted({})
    published = space.whole(space.published_point()[0])
    winner = {**published, "batch_size": 128, "base_lr": 3e-4}
    found, left_out = reversions(
        space, winner, published, {}, lambda settings: "too small" if settings["batch_size"] == 64 else None
    )
    assert [each.setting for each in found] == ["base_lr"]
    assert left_out == ["batch_size 128 -> 64: not put back, as it cannot work: too small"]


# -- importance --------------------------------------------------------------------------------------------

SPACE = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_clusters": 4, "base_lr": 1e-4, "weight_decay": 1e-4, "nb_epochs": 6},
    domains={
        "criterion": Choice(["margin", "contrastive"]),
        "base_lr": Float(1e-5, 1e-2, log=True),
        "weight_decay": Float(1e-5, 1e-3, log=True),
    },
)
WINNER = {**SPACE.published, "criterion": "margin", "base_lr": 1e-3}


def rated(count):
    """The importance of settings of which base_lr decides and criterion helps."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(count):
        trial = study.ask()
        chosen = SPACE.suggest(trial)
        value = 0.5 - 0.1 * abs(chosen["base_lr"] - 1e-3) / 1e-3 + 0.01 * (chosen["criterion"] == "margin")
        if number > 0:  # one that was never launched does not count
            trial.set_user_attr(KEY, f"{number:03d}")
        trial.report(value, 1)
        study.tell(trial, value)
    return importance(
        study.trials,
        list(SPACE.domains),
        settings=lambda trial: SPACE.whole(trial.params),
        winner=WINNER,
        published=SPACE.published,
    )


@pytest.mark.parametrize(("count", "method"), [(60, "PED-ANOVA of 59 trials"), (9, "difference of means of 8 trials")])
def test_the_setting_that_decides_is_the_most_important(count, method):
    """By Optuna where there are enough trials, else by means; both say so."""
    found = rated(count)
    assert next(iter(found.of)) == "base_lr"
    assert set(found.of) == set(SPACE.domains)
    assert found.method == method


def test_nothing_is_important_without_trials():
    """And of trials that are all equal."""
    for count in (0, 1):
        assert set(rated(count).of.values()) <= {0.0}


# -- what is said ------------------------------------------------------------------------------------------


def put_back(setting, before, after):
    return Reversion(changes={setting: (before, after)}, main=(setting,), config={}, importance=0.5)


def confirmed(units):
    """A confirmation that trial 001 has won."""
    candidates = [Candidate(name="001", config=WINNER, key="001", value=0.6), Candidate(name=PUBLISHED, config={})]
    results = {
        (name, unit): {f"{METRIC}_best": value + 0.1 * unit.fold, "curve": [value + 0.1 * unit.fold]}
        for name, value in (("001", 0.5), (PUBLISHED, 0.4))
        for unit in units
    }
    return Confirmation(candidates=candidates, units=units, results=results, dropped={}, metric=METRIC)


def ablation(values, **changes):
    found = reference(confirmed([ONE, TWO]), [], FoldSeed(0, 0))
    reverted = [put_back("criterion", "arcface", "margin"), put_back("init_method", "pca", None)]
    given = {
        "reversions": reverted,
        "reference": found,
        "method": "PED-ANOVA of 20 trials",
        "metric": METRIC,
        "left_out": [],
    }
    return Ablation(values=values, **(given | changes))


def test_lines_have_intervals_where_there_are_two_runs():
    """One line each, in points, and the same facts as JSON."""
    winner = {ONE: 0.6, TWO: 0.7}
    found = ablation({"001": winner, "criterion": {ONE: 0.578, TWO: 0.680}, "init_method": {ONE: 0.5594}})
    head, first, second = found.lines()
    assert head.startswith("trial 001 with one setting put back to published, minus trial 001 as it is")
    assert "by PED-ANOVA of 20 trials" in head
    assert first.startswith("criterion arcface -> margin: -2.1 points of recall@1, 95 % interval -")
    assert second.startswith("init_method pca -> none: -4.0 points of recall@1")
    assert second.endswith("; 1 of 2 runs have no result")
    facts = found.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert [each["pairs"] for each in facts["settings"]] == [2, 1]
    assert facts["settings"][0]["low"] < facts["settings"][0]["difference"] < facts["settings"][0]["high"]


def test_one_run_each_has_no_interval_and_a_failed_one_no_value():
    """Both are said; so is what was not put back."""
    found = ablation(
        {"001": {ONE: 0.6}, "criterion": {ONE: 0.58}, "init_method": {}}, left_out=["base_lr: not put back"]
    )
    _, *lines = found.lines()
    assert lines == [
        "criterion arcface -> margin: -2.0 points of recall@1 (one fold of classes, no interval); 1 of 2 runs have no result",
        "init_method pca -> none: no result: its run failed",
        "base_lr: not put back",
    ]
    assert ablation({"001": {ONE: 0.6}}, reversions=[]).lines() == [
        "nothing is put back: trial 001 differs from the published setting in nothing that has an effect"
    ]


def trial(key, state, config):
    return KnownTrial(key=key, config=config, curve={1: 0.4, 2: 0.6}, state=state, reason=None)


@pytest.mark.parametrize(
    ("state", "note"), [("done", None), ("pruned", "001 was pruned or stopped in the search, so it was run in full")]
)
def test_without_a_confirmation_the_trial_of_the_search_is_compared_with(state, note):
    """If it ran to its end; the unit is that of the search."""
    raced = confirmed([])
    found = reference(raced, [trial("000", "done", SPACE.published), trial("001", state, WINNER)], FoldSeed(0, 7))
    assert (found.units, found.is_confirmed) == ([FoldSeed(0, 7)], False)
    assert (("001", FoldSeed(0, 7)) in found.results) == (state == "done")
    assert (found.note or "").startswith(note or "")
    assert next(each.name for each in found.settings) == "000"
