"""The results of runs that are no trials, as a search reads them back."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.search.confirmation import Candidate, FoldSeed, units
from dcml_tune.search.trial_runs import FINAL, TrialRuns
from dcml_tune.utils.files import write_checksummed
from dcml_tune.utils.signals import SearchStopped
from trainables.resources import share
from trainables.run import run_of

CANDIDATE = Candidate(name="published", key=None, config={"dataset": "emoji"}, value=None, epochs=None)


@pytest.fixture
def runs(tmp_path):
    shares = share(num_samples=1, cores=1, gpus=0)
    return TrialRuns(search="s", output=tmp_path, shares=shares, metric="val/recall_at_1", varied=(), first_seed=0)


def test_a_result_without_test_measures_is_named(runs):
    """It is not repeated by itself: that would score the test classes again."""
    run = runs.final_run(CANDIDATE, "published", 0, None)
    assert runs.results([run]) == {}
    file = runs.directory / run["run"]["key"] / "result.json"
    file.parent.mkdir(parents=True)
    write_checksummed(file, {"epoch": 1, "done": True, "test/recall_at_1": 0.5})
    with pytest.raises(SearchStopped, match=f"{file}: has no test/map_at_r; move it away to repeat this run"):
        runs.results([run])
    write_checksummed(file, {"epoch": 1, "done": True, "test/recall_at_1": 0.5, "test/map_at_r": 0.25})
    assert list(runs.results([run])) == [run["run"]["key"]]


@given(st.integers(0, SEEDS - 1), st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 2000))
def test_no_two_stages_share_a_seed(first, folds, seeds, number):
    """For any flags, also where seeds begin at 0 again: what chance favoured once must not count twice."""
    shares = share(num_samples=1, cores=1, gpus=0)
    runs = TrialRuns(search="s", output=Path("o"), shares=shares, metric="m", varied=(), first_seed=first)
    of_final = runs.final_run(CANDIDATE, "published", number, None)["seed"]
    last = units(folds, 1, first)[-1].seed if seeds == 1 else (first + folds * seeds) % SEEDS
    confirming = (last - first) % SEEDS  # of the seeds after that of the trials
    assert confirming == folds * seeds < (of_final - first) % SEEDS
    assert of_final != runs.final_run(CANDIDATE, "published", number + 1, None)["seed"]


def test_old_final_runs_keep_seeds_and_names(runs):
    """Those of an earlier version begin at the seed of the trials; seeds that are added to them do not."""
    old = replace(runs, first_seed=7, old_final_seeds=2)
    made = [old.final_run(CANDIDATE, "published", number, None) for number in range(3)]
    assert [run["seed"] for run in made] == [7, 8, 7 + FINAL + 2]
    names = [run["run"]["key"] for run in made]
    assert names == ["final-published", "final-published-seed-8", f"final-published-seed-{9 + FINAL}"]
    new = replace(old, old_final_seeds=0).final_run(CANDIDATE, "published", 0, None)
    assert (new["seed"], new["run"]["key"]) == (7 + FINAL, "final-published")


def test_a_run_shares_epochs_with_earlier_trials(runs):
    """Up to where its settings begin to act; a run with other held-out classes shares none."""
    config = {"dataset": "emoji", "nb_epochs": 6, "nb_clusters": 2, "mod_epoch": 2, "masking_lambda": 0.1}
    winner = TrialConfig(**{**config, "masking_lambda": 0.5})
    reverted = Candidate(name="001 without masking_lambda", config=config)
    found = [
        run_of(runs.sharing([runs.ablate_run(reverted, FoldSeed(fold, winner.seed), "001")], [winner])[0])
        for fold in (0, 1)
    ]
    assert [each.shares for each in found] == [(2,), ()]
    assert [each.role for each in found] == ["ablate", "ablate"]
