"""--start-or-resume: the same command may be run any number of times."""

import shutil

import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.config.search import SearchConfig
from dcml_tune.runs.record import Record
from dcml_tune.search.__main__ import main
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.search.request import MAY_CHANGE
from dcml_tune.search.resume import resumed_plan
from dcml_tune.search.start_or_resume import new_or_resumed

# A value of each flag that is recorded.
GIVEN = {
    "num_samples": ["--num-samples", "3"],
    "searcher": ["--searcher", "auto"],
    "scheduler": ["--scheduler", "median"],
    "metric": ["--metric", "recall_at_1", "--metric", "time/epoch_s"],
    "test_metric": ["--test-metric", "map_at_r"],
    "space": ["--space", "wide"],
    "warm_start": ["--warm-start", "earlier"],
    "prior": ["--prior"],
    "gpus_per_trial": ["--gpus-per-trial", "auto"],
    "max_concurrent": ["--max-concurrent", "1"],
    "time_budget": ["--time-budget", "60m"],
    "epoch_budget": ["--epoch-budget", "50"],
    "patience": ["--patience", "4"],
    "trial_timeout": ["--trial-timeout", "20m"],
    "checkpoint_budget": ["--checkpoint-budget", "2GB"],
    "checkpoint_every": ["--checkpoint-every", "2"],
    "deterministic": ["--deterministic"],
    "compile": ["--compile", "on"],
    "no_share": ["--no-share"],
    "confirm": ["--confirm", "1"],
    "folds": ["--folds", "2"],
    "seeds": ["--seeds", "2"],
    "controls": ["--controls", "published"],
    "ablate": ["--ablate", "1"],
    "final": ["--final", "none"],
    "final_seeds": ["--final-seeds", "2"],
    "difference": ["--difference", "1"],
    "tracking_uri": ["--tracking-uri", "sqlite:///tracking.db"],
    "name": ["--name", "s"],
    "scratch": ["--scratch", "scratch"],
    "a file of a space": ["--space", "space.py"],
    "settings of a trial": ["--base-lr", "1e-4", "--weights", "none", "--force-full-embedding-epoch", "none"],
}


@pytest.fixture
def words(folder, tmp_path, monkeypatch):
    """The command line of a small search, in whose directory the files lie that flags name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.py").write_text("from search_spaces.folder import SPACE\n")
    return [
        "folder", "--dataset-dir", str(folder), "--output-dir", "runs", "--start-or-resume", "s", "--train-classes", "16",
        "--arch", "test_resnet", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "8",
        "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "4",
    ]  # fmt: skip


def begun(words):
    """The record of a search that was begun and whose process is gone."""
    plan = given_plan(new_or_resumed(read_command_line(words)))
    record = plan.begin()
    plan.searcher()
    record.release()
    return record


def test_each_flag_that_is_recorded_is_tested():
    """A new flag must survive the second run of its command. The tests of --study-uri and --storage are elsewhere."""
    assert SearchConfig.model_fields.keys() - {"dataset", "repeat_trial", "study_uri", "storage", *MAY_CHANGE} == {
        name for name in GIVEN if " " not in name
    }


@pytest.mark.parametrize("flag", GIVEN)
def test_the_same_flags_are_taken_again(words, flag):
    """Also where the record holds what they mean instead of what was given."""
    if flag == "warm_start":
        index = words.index("s")
        begun([*words[:index], "earlier", *words[index + 1 :]])
    command = [*words, *GIVEN[flag]]
    begun(command)
    again = new_or_resumed(read_command_line(command))
    assert again.config.resume == "s"
    plan = resumed_plan(again)
    plan.record.release()
    assert plan.name == "s"


def test_other_flags_are_refused_in_one_line(words, tmp_path):
    """As a resume refuses them; the record is left as it is."""
    begun(words)
    before = (tmp_path / "runs" / "s" / "search.json").read_bytes()
    for more, expected in [
        (["--num-samples", "9"], "--num-samples 9: search s began with 8"),
        (["--nb-epochs", "5"], "--nb-epochs 5: search s began with 4"),
        (["--searcher", "random"], "--searcher random: search s began with optuna"),
    ]:
        with pytest.raises(SettingError, match=expected):
            main([*words, *more])
    assert (tmp_path / "runs" / "s" / "search.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--resume", "s"], "--start-or-resume s: does not go together with --resume"),
        (["--resume"], "--start-or-resume s: does not go together with --resume"),
        (["--extend", "s"], "does not go together with --extend"),
        (["--extend", "s", "--more-final-seeds", "2"], "does not go together with --extend"),
        (["--more-final-seeds", "2"], "does not go together with --more-final-seeds"),
        (["--repeat-trial", "s/000"], "does not go together with --repeat-trial"),
        (["--name", "t"], "--name t is another name"),
        (["--start-or-resume", "runs/s"], "--start-or-resume runs/s: must not hold any of /"),
        (["--start-or-resume", ""], "is empty"),
    ],
)
def test_flags_that_say_something_else_are_refused(words, more, expected):
    """Before anything is made."""
    with pytest.raises(SettingError, match=expected):
        main([*words, *more])


def test_a_complete_search_is_no_error(words, capsys):
    """Exit code 0 with a line, which names failed trials; other flags are refused all the same, and images are not needed."""
    record = begun(words)
    record.update(status="finished", ended=8, planned=8)
    assert main(words) == 0
    assert capsys.readouterr().out == "search s is complete, 8 of 8 trials: nothing is left to run\n"
    record.update(reason="failed: 003; missing: none")
    assert main([*words, "--dataset-dir", "/gone"]) == 0
    assert "8 of 8 trials (failed: 003; missing: none): nothing is left" in capsys.readouterr().out
    with pytest.raises(SettingError, match="--num-samples 9: search s began with 8"):
        main([*words, "--num-samples", "9"])
    with pytest.raises(SettingError, match="--resume s: it is finished"):
        main(["--resume", "s", "--output-dir", "runs"])


def test_a_second_process_is_told_apart(words):
    """By its exit code: a retry may succeed."""
    record = begun(words)
    holder = Record.open(record.directory)
    holder.hold()
    with pytest.raises(SettingError, match=r"search s: .* runs it; wait for its end") as refused:
        main(words)
    assert refused.value.exit_code == 4


def test_what_a_kill_at_the_start_leaves_is_no_search(words, tmp_path):
    """An empty directory, or one with nothing but a lock."""
    directory = tmp_path / "runs" / "s"
    for left in ([], ["lock"]):
        directory.mkdir(parents=True)
        for name in left:
            (directory / name).touch()
        assert main([*words, "--dry-run"]) == 0
        assert not (directory / "search.json").exists()
        if directory.exists():
            (directory / "lock").unlink()
            directory.rmdir()
    directory.mkdir()
    (directory / "mine.txt").touch()
    with pytest.raises(SettingError, match="exists; choose another name"):
        main(words)


def test_a_search_in_a_storage_goes_on_on_another_machine(words, tmp_path):
    """By the same command, in an empty directory; another storage is refused there."""
    address = f"file://{tmp_path}/bucket"
    words = [*words, "--storage", address]
    plan = given_plan(new_or_resumed(read_command_line(words)))
    record = plan.begin()
    plan.searcher()
    plan.pusher(record).close(knows_ends=True)
    record.release()
    shutil.rmtree(tmp_path / "runs")
    again = resumed_plan(new_or_resumed(read_command_line(words)))
    again.record.release()
    assert (again.config.storage, again.name, again.record.state.processes) == (address, "s", 1)
    assert again.runs.run().storage == address
    with pytest.raises(SettingError, match=f"--storage {address}2: search s began with {address}"):
        resumed_plan(new_or_resumed(read_command_line([*words[:-1], f"{address}2"])))
