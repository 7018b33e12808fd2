import optuna
import pytest

from dcml_tune.config import SettingError
from search_spaces import load_space
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
    assert space.point0()[0]["nb_clusters"] in space.domains["nb_clusters"].values


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
    point, lines = space.restricted({"mod_epoch": 1}, too_many(8)).point0(too_many(8))
    assert point["nb_clusters"] == 8
    assert any("nb_clusters" in line and "32" in line and "8" in line for line in lines)


def test_fixed_settings_do_not_vary(space):
    """A flag takes its setting out of the space; with all fixed there is nothing to search."""
    restricted = space.restricted({"mod_epoch": 2})
    assert "mod_epoch" not in restricted.domains
    assert restricted.published["mod_epoch"] == 2
    with pytest.raises(SettingError, match=r"dcml_tune\.train"):
        space.restricted({"mod_epoch": 2, "nb_clusters": 2, "masking_lambda": 0.1})


def test_a_space_that_cannot_work_is_refused(space):
    """The reason of the refusal is in the message."""
    with pytest.raises(SettingError, match=r"nb_clusters .* can work: .*too many"):
        space.restricted({}, too_many(1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SPACE = 3", "defines no SPACE"),
        ("1 / 0", "ZeroDivisionError"),
        ("from search_spaces import *\nfrom search_spaces.space import *\n"
         "SPACE = SearchSpace(name='emoji', published={}, domains={'nb_cluster': Choice([2])})", "nb_clusters"),
        ("from search_spaces.space import *\nInt(3, 2)", "low <= high"),
        ("from search_spaces.space import *\nFloat(0, 2, log=True)", "log scale"),
        ("from search_spaces.space import *\nChoice([])", "none"),
    ],
)  # fmt: skip
def test_a_users_file_that_is_wrong_is_named(text, words, tmp_path):
    """Each error says what is wrong with the file."""
    file = tmp_path / "space.py"
    file.write_text(text)
    with pytest.raises(SettingError, match=words):
        load_space("emoji", file)


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
    lines = load_space("folder").restricted({"fixed_mask": True}).without_effect()
    assert [line.split(" varies and has no effect: ")[0] for line in lines] == ["masking_lambda", "mask_lr_mult"]
    assert load_space("folder").restricted({}).without_effect() == []
    space = load_space("folder").widened(fixed_mask=Choice([False, True]))
    assert space.restricted({}).without_effect() == []
