import optuna
import pytest
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.record import Record
from dcml_tune.runs.study import KEY
from search_spaces.space import Choice, Float, SearchSpace
from trainables.warm_start import EARLIER, warm_start

METRICS = ["val/recall_at_1"]
SPACE = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_epochs": 6, "masking_lambda": 0.01, "nb_clusters": 2},
    domains={"nb_clusters": Choice([1, 2]), "masking_lambda": Float(1e-3, 1.0, log=True)},
)
TRIALS = [(1, 0.1, 0.5, "COMPLETE"), (2, 0.2, 0.7, "PRUNED"), (2, 0.3, None, "FAIL"), (2, 5.0, 0.9, "COMPLETE")]


@pytest.fixture
def earlier(tmp_path):
    """Writes a search that has ended."""

    def write(name, **asked):
        space = {"name": "emoji", "published": {**SPACE.published, **asked.pop("published", {})}, "domains": {}}
        record = Record.create(tmp_path / name, {**SMALLEST, "metrics": METRICS, "space": space, **asked})
        record.release()
        study = optuna.create_study(
            storage=f"sqlite:///{tmp_path / name / 'optuna.db'}", study_name=name, direction="maximize"
        )
        for number, (clusters, weight, value, state) in enumerate(TRIALS):
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[state],
                    params={"nb_clusters": clusters, "masking_lambda": weight},
                    distributions={
                        "nb_clusters": optuna.distributions.CategoricalDistribution([1, 2]),
                        "masking_lambda": optuna.distributions.FloatDistribution(1e-3, 9.0),
                    },
                    value=value,
                    intermediate_values={} if value is None else {1: value},
                    user_attrs={KEY: f"{number:03d}"},
                )
            )
        return tmp_path

    return write


def start(names, output, **changes):
    return warm_start(names, output, **{"data": ("abc",), "metrics": METRICS, "space": SPACE, **changes})


def test_trials_of_the_same_settings_teach_the_sampler(earlier):
    """With the values that they had; failed ones and those outside of the space do not."""
    found = start(["a"], earlier("a"))
    assert [(t.value, t.state.name, t.user_attrs[EARLIER]) for t in found.trials] == [
        (0.5, "COMPLETE", "a/000"), (0.7, "PRUNED", "a/001")
    ]  # fmt: skip
    assert found.points == []
    assert found.lines == ["warm start from a: 2 trials teach the sampler; 1 lie outside of what is searched here"]
    study = optuna.create_study(direction="maximize")
    study.add_trials(found.trials)
    assert study.trials[0].params == {"nb_clusters": 1, "masking_lambda": 0.1}


def test_of_trials_with_other_settings_the_best_are_tried_first(earlier):
    """Their values would mislead: they have other reasons, too."""
    output = earlier("a", published={"nb_epochs": 3, "dataset_dir": "/elsewhere", "force_full_embedding_epoch": None})
    found = start(["a"], output)
    assert found.trials == []
    assert found.points == [{"nb_clusters": 2, "masking_lambda": 0.2}, {"nb_clusters": 1, "masking_lambda": 0.1}]
    assert "2 are not comparable (nb_epochs), the best 2 settings are tried first" in found.lines[0]


def test_a_setting_that_varies_only_here_has_the_value_it_had(earlier):
    """It lies in the domain, or the trial is left out."""
    output = earlier("a")
    space = SPACE.widened(base_lr=Float(1e-6, 1e-1, log=True))
    assert {trial.params["base_lr"] for trial in start(["a"], output, space=space).trials} == {1e-5}
    assert start(["a"], output, space=SPACE.widened(base_lr=Float(1e-3, 1e-1))).trials == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"data": "xyz"}, r"--warm-start a: its images are others \(fingerprint xyz, here abc\)"),
        (
            {"metrics": ["val/map_at_r"]},
            "--warm-start a: its trials were compared by val/map_at_r, here it is val/recall_at_1",
        ),
    ],
)
def test_what_cannot_teach_is_refused(earlier, asked, words):
    """Other images, another metric, no search."""
    output = earlier("a", **asked)
    with pytest.raises(SettingError, match=words):
        start(["a"], output)
    with pytest.raises(SettingError, match=r"--warm-start b: .* holds no search"):
        start(["b"], output)
