"""The results of runs that are no trials, as a search reads them back."""

import pytest

from dcml_tune.search.confirmation import Candidate
from dcml_tune.search.trial_runs import TrialRuns
from dcml_tune.utils.files import write_checksummed
from dcml_tune.utils.signals import SearchStopped
from trainables.resources import share

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
