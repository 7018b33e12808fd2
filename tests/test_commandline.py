import subprocess
import sys

import pytest

from dcml_tune.cli.parser import Parser, add_settings, given_settings, settings_to_flags, typed
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import writable
from trainables.resources import share


def settings(*words):
    parser = Parser(prog="x")
    add_settings(parser)
    return given_settings(vars(parser.parse_args([*words])))


def test_flags_give_settings_in_their_types():
    """Either spelling; none is None; a flag of truth takes 0 and 1, or nothing."""
    assert settings("--nb-clusters", "4", "--masking_lambda=0.5", "--force-full-embedding-epoch", "none") == {
        "nb_clusters": 4,
        "masking_lambda": 0.5,
        "force_full_embedding_epoch": None,
    }
    assert settings("--skip-unreadable") == {"skip_unreadable": True}
    assert settings("--skip-unreadable", "0") == {"skip_unreadable": False}
    assert settings() == {}


def test_settings_become_flags_that_are_read_back():
    """The command that is printed at the end of a search trains the same setting."""
    config = TrialConfig(dataset="emoji", nb_clusters=4, nb_epochs=9, mask_lr_mult=12.345678901234567, num_workers=3)
    assert TrialConfig(**settings(*settings_to_flags(config.model_dump()))) == config


@pytest.mark.parametrize(("name", "value"), [("nb_clusters", "two"), ("nb_epochs", "-1"), ("base_lr", "fast")])
def test_a_wrong_value_names_itself(name, value):
    """Value, rule and default are in the message."""
    with pytest.raises(SettingError, match=rf"{name}={value}: .*the default is"):
        typed(name, value)


def test_an_unknown_flag_names_the_nearest(capsys):
    """One line, status 2."""
    with pytest.raises(SystemExit) as stop:
        settings("--nb-cluster", "4")
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "error: setting --nb-cluster is not known; did you mean --nb-clusters?"


def test_help_imports_no_torch():
    """Help is there at once."""
    code = "import sys, dcml_tune.search.__main__ as s; s.read_command_line(['emoji']); assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_output_directory_is_made_and_absolute(tmp_path, monkeypatch):
    """Below a file it cannot be made."""
    monkeypatch.chdir(tmp_path)
    assert writable(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="cannot be written"):
        writable(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("options", "concurrent", "threads", "gpus"),
    [
        ({"cores": 2, "gpus": 0}, 2, 1, 0.0),
        ({"cores": 8, "gpus": 0}, 4, 2, 0.0),
        ({"cores": 8, "gpus": 0, "max_concurrent": 8}, 8, 1, 0.0),
        ({"cores": 8, "gpus": 0, "num_samples": 1}, 1, 8, 0.0),
        ({"cores": 16, "gpus": 1, "gpus_per_trial": 0.25}, 4, 4, 0.25),
        ({"cores": 16, "gpus": 8}, 8, 2, 1.0),
        ({"cores": 16, "gpus": 8, "gpus_per_trial": 2}, 4, 4, 2),
        ({"cores": 16, "gpus": 8, "gpus_per_trial": 0.3}, 20, 1, 0.3),
        ({"cores": 16, "gpus": 8, "gpus_per_trial": 0.5, "max_concurrent": 3}, 3, 1, 0.5),
        ({"cores": 4, "gpus": 2, "gpus_per_trial": 0}, 4, 1, 0.0),
    ],
)
def test_shares_of_the_machine(options, concurrent, threads, gpus):
    """How many trials at once, and what each gets."""
    found = share(**{"num_samples": 20, **options})
    assert (found.concurrent, found.threads_per_trial, found.gpus_per_trial) == (concurrent, threads, gpus)


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 1), (0.25, 1), (1, 1), (2, 2), (8, 8)])
def test_a_trial_trains_on_all_gpus_that_it_holds(gpus, ranks):
    """One process for each."""
    assert share(num_samples=20, cores=16, gpus=8, gpus_per_trial=gpus).ranks == ranks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_trial": -0.5}, "fraction"),
        ({"gpus_per_trial": float("nan")}, "fraction"),
        ({"gpus_per_trial": 1.5}, "--gpus-per-trial 1.5: must be a fraction up to 1, or a whole number up to 8; give"),
        (
            {"gpus_per_trial": 9, "gpus": 16},
            "--gpus-per-trial 9: must be a fraction up to 1, or a whole number up to 8",
        ),
        ({"gpus_per_trial": float("inf")}, "--gpus-per-trial inf: must be a fraction up to 1, or a whole number"),
        ({"gpus_per_trial": 4, "gpus": 2}, "--gpus-per-trial 4: this machine has 2 GPUs; give at most 2"),
        ({"gpus_per_trial": 0.5, "gpus": 0}, "--gpus-per-trial 0.5: this machine has 0 GPUs"),
        ({"max_concurrent": 0}, "--max-concurrent 0"),
    ],
)
def test_shares_that_cannot_be(options, words):
    """Value and remedy are in the message."""
    with pytest.raises(SettingError, match=words):
        share(**{"num_samples": 20, "cores": 8, "gpus": 8, **options})


def test_a_wrong_data_set_is_refused_before_torch_is_imported(tmp_path):
    """Common mistakes are refused in a fraction of a second."""
    code = (
        "import sys\nfrom dcml_tune.config.errors import SettingError\nimport dcml_tune.search.__main__ as s\n"
        f"try: s.main(['emojy', '--output-dir', {str(tmp_path)!r}])\n"
        "except SettingError: print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
