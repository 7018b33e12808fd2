"""Random spaces with conditions against enumeration: what can work, trial 0, draws, and settings without effect."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons
from search_spaces import Choice, Float, Int, SearchSpace, When

optuna.logging.set_verbosity(optuna.logging.WARNING)

FINITE = {
    "criterion": ["MarginLoss", "npairs", "multi_similarity", "triplet"],
    "nb_clusters": [1, 2, 3, 4, 8],
    "fixed_mask": [False, True],
    "hierarchy_method": ["top_bot", "none"],
    "batch_sampler": ["npairs", "randombatch", "adaptbalanced"],
    "force_full_embedding_epoch": [None, 0, 3, 6],
    "init_method": [None, "pt_splitted"],
    "sz_embedding": [2, 3, 4, 8],
    "nb_epochs": [1, 2, 4, 5, 7, 9],
    "batch_size": [2, 4, 6, 9],
}
WHOLE = {"mod_epoch": (1, 4), "mod_epoch_freeze": (0, 3), "num_samples_per_class": (1, 4), "warmup_epochs": (0, 3)}
REAL = {"margin": (0.1, 0.3), "masking_lambda": (0.1, 1.0), "ms_beta": (30.0, 60.0)}
POINTS = st.fixed_dictionaries(
    {"nb_epochs": st.integers(1, 9), "mod_epoch": st.integers(1, 4), "nb_clusters": st.sampled_from([1, 2, 4, 6])},
    optional={
        "criterion": st.sampled_from(["MarginLoss", "npairs"]),
        "margin": st.just(0.07),
        "batch_size": st.just(4),
    },
)


def domain_of(draw, name):
    """A domain of a setting: some values, a range of whole numbers, or one of real numbers."""
    if name in FINITE:
        return Choice(draw(st.lists(st.sampled_from(FINITE[name]), min_size=1, max_size=3, unique=True)))
    low, high = WHOLE[name] if name in WHOLE else REAL[name]
    if name in REAL:
        return Float(low, draw(st.sampled_from([low, high])))
    ends = sorted([draw(st.integers(low, high)), draw(st.integers(low, high))])
    return Int(*ends)


def condition_on(draw, name, values):
    """A condition that holds for some of the values of another setting."""
    value = draw(st.sampled_from(values))
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return When(name, above=value - 1)
    return When(name, among=[value, *draw(st.lists(st.sampled_from(values), max_size=2))])


@st.composite
def spaces(draw):
    """Two to five settings in any order; each looks at up to two of those before it, or at one that does not vary."""
    names = draw(st.lists(st.sampled_from([*FINITE, *WHOLE, *REAL]), min_size=2, max_size=5, unique=True))
    published = draw(POINTS)
    domains = {name: domain_of(draw, name) for name in names}
    conditions = {}
    for place, name in enumerate(names):
        before = [each for each in names[:place] if each not in REAL]
        looked_at = draw(st.lists(st.sampled_from(before), max_size=2, unique=True)) if before else []
        conditions[name] = [condition_on(draw, each, values_of(domains[each])) for each in looked_at]
        if "nb_clusters" not in names and draw(st.integers(0, 9)) == 0:
            conditions[name].append(condition_on(draw, "nb_clusters", [published["nb_clusters"]]))
    return SearchSpace(name="emoji", published=published, domains=domains, conditions=conditions)


def values_of(domain):
    """The values of a domain; of a range of real numbers, which no rule looks at, its lower end."""
    if isinstance(domain, Int):
        return list(range(domain.low, domain.high + 1))
    return list(domain.values) if isinstance(domain, Choice) else [domain.low]


@dataclass
class Naive:
    """The trials of a space by enumeration, with some settings fixed by flags."""

    space: SearchSpace
    fixed: dict[str, Any]

    def value(self, name, chosen):
        """Of a setting in a trial: fixed, chosen, published, or the default if it was published for another loss."""
        if name in self.fixed or name in chosen:
            return {**chosen, **self.fixed}[name]
        published = {**TrialConfig(dataset="emoji").model_dump(), **self.space.published}
        if name != "criterion" and not same_loss(self.value("criterion", chosen), published["criterion"]):
            looks = [each for each in self.space.conditions.get(name, ()) if each.setting == "criterion"]
            if not all(self.holds(each, chosen) for each in looks):
                return TrialConfig(dataset="emoji").model_dump()[name]
        return published[name]

    def holds(self, when, chosen):
        """Whether a condition holds in a trial."""
        value = self.value(when.setting, chosen)
        if when.above is not None:
            return isinstance(value, int | float) and value > when.above
        return any(value == each or (when.setting == "criterion" and same_loss(value, each)) for each in when.among)

    def trials(self):
        """All points, those that cannot work, too."""
        found = [{}]
        for name, domain in self.space.domains.items():
            grown = []
            for chosen in found:
                varies = name not in self.fixed and all(
                    self.holds(each, chosen) for each in self.space.conditions.get(name, ())
                )
                grown += [{**chosen, name: value} for value in values_of(domain)] if varies else [chosen]
            found = grown
        return found

    def settings(self, chosen):
        """All settings of a trial, as far as they differ from the defaults."""
        names = {*self.space.published, *self.space.domains, *self.fixed}
        return {"dataset": "emoji", **{name: self.value(name, chosen) for name in names}}

    def refusal(self, chosen, infeasible_reason):
        """Why a point cannot work, or None."""
        try:
            return infeasible_reason(TrialConfig(**self.settings(chosen)))
        except SettingError as error:
            return str(error)


def same_loss(one, other):
    return {"MarginLoss": "margin"}.get(one, one) == {"MarginLoss": "margin"}.get(other, other)


def rule_of_data(modulus):
    """A rule that holds for some combinations only, in no order."""

    def look(config):
        total = config.nb_clusters * config.mod_epoch + config.num_samples_per_class
        return f"total={total}: not on these data" if total % modulus == 0 else None

    return look


FIXED = st.sampled_from([{}, {}, {"nb_epochs": 5}, {"nb_clusters": 2}, {"criterion": "npairs"}, {"mod_epoch": 1}])
QUICK = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@QUICK
@given(spaces(), FIXED, st.integers(2, 9), st.integers(0, 10**6))
def test_what_a_space_decides_is_what_enumeration_finds(space, fixed, modulus, seed):
    """Refusals and their reasons, choices that are left, trial 0, ends of ranges, and draws."""
    naive, rule = Naive(space, fixed), rule_of_data(modulus)
    trials = naive.trials()
    refusals = {str(chosen): naive.refusal(chosen, rule) for chosen in trials}
    working = [chosen for chosen in trials if refusals[str(chosen)] is None]
    if not working or trials == [{}]:
        with pytest.raises(SettingError) as refused:
            space.restricted(fixed, rule)
        if trials != [{}]:
            check_reason(str(refused.value), naive, refusals, rule)
        return
    restricted = space.restricted(fixed, rule)
    check_domains(space, restricted, working, rule)
    point, _ = restricted.published_point(rule)
    check_nearest(restricted, point, working)
    check_ends(restricted, working, rule)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        chosen, why = drawn(restricted, study.ask(), rule)
        if why is not None:
            assert why in refusals.values()
            continue
        assert finite(chosen) in [finite(each) for each in working]
        assert chosen.keys() == {name for each in working if finite(each) == finite(chosen) for name in each}


def drawn(space, trial, rule):
    """What a trial draws, and why it cannot work."""
    try:
        return space.suggest(trial, rule), None
    except SettingError as error:
        return {}, str(error)


def finite(chosen):
    return {name: value for name, value in chosen.items() if name not in REAL}


def check_reason(said, naive, refusals, rule):
    """The reason is that of a point of the space; with the remedy something works."""
    reason, _, remedy = said.partition("; it works with ")
    assert any(reason.endswith(each) for each in refusals.values()), (said, refusals)
    if remedy:
        name, value = remedy.split("=")
        changed = Naive(naive.space, {**naive.fixed, name: int(value)})
        assert any(changed.refusal(each, rule) is None for each in changed.trials()), said


def check_domains(space, restricted, working, rule):
    """The trials that work are the same in what is left, and a choice is left exactly if one of them has it."""
    left = Naive(restricted, {})
    assert [chosen for chosen in left.trials() if left.refusal(chosen, rule) is None] == working
    for name, domain in space.domains.items():
        values = {chosen[name] for chosen in working if name in chosen}
        if values and isinstance(domain, Choice):
            assert set(restricted.domains[name].values) == values, name


def check_nearest(space, point, working):
    """Trial 0 works, and no trial that works has fewer changes; those of nb_clusters do not count."""
    assert finite(point) in [finite(each) for each in working]

    def changes(chosen):
        start = {name: space.domains[name].nearest(space.unvaried(name)) for name in chosen}
        return sum(chosen[name] != start[name] for name in finite(chosen) if name != "nb_clusters")

    assert changes(point) == min(map(changes, working))


def check_ends(space, working, rule):
    """Given what was drawn before, a range goes from its smallest to its largest number that works."""
    for chosen in working[:: max(1, len(working) // 4)]:
        for place, (name, _) in enumerate(chosen.items()):
            if not isinstance(space.domains[name], Int):
                continue
            before = dict(itertools.islice(chosen.items(), place))
            others = [
                each for each in working if dict(itertools.islice(each.items(), place)) == before and name in each
            ]
            values = [each[name] for each in others]
            assert space.problem(rule).ends(name, before) == (min(values), max(values)), (name, before)


@QUICK
@given(spaces())
def test_a_setting_is_said_to_have_no_effect_exactly_if_it_has_none(space):
    """In no trial that keeps the rules and in which it varies."""
    naive = Naive(space, {})
    trials = [chosen for chosen in naive.trials() if naive.refusal(chosen, lambda config: None) is None]
    idle = {
        name
        for name in space.domains
        if (varied := [each for each in trials if name in each])
        and all(name in unused_reasons(TrialConfig(**naive.settings(each))) for each in varied)
    }
    assert {line.split(" varies and has no effect")[0] for line in space.unused_settings()} == idle
