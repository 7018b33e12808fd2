"""Files with a right checksum and wrong content: the error that is documented, in one line, and no other."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, ImageStore, contents, open_or_build
from dcml_tune.models.embedder import MaskedEmbedder, load
from dcml_tune.models.pretrained import load_into
from dcml_tune.report import reading
from dcml_tune.runs import ledger
from dcml_tune.runs.record import Record
from dcml_tune.runs.results import read_result
from dcml_tune.training.saving import saved_config
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from search_spaces.space import SearchSpace

GONE = object()
ODD = st.sampled_from(
    [GONE, None, True, -1, 0, 3, 2**63, 10**400, 0.5, 1e300, "", "7", "\x1b[31m\n", "\udcff", [], {}, [[]], {"a": None}]
)
DEEP = json.loads("[" * 900 + "]" * 900)


def places(value, at=()):
    """Where something is in a value of JSON."""
    yield at
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*at, key))


def changed(value, at, new):
    """The value with something else in one place."""
    if not at:
        return new if isinstance(new, dict) else {}
    found = copy.deepcopy(value)
    inside = found
    for key in at[:-1]:
        inside = inside[key]
    if new is GONE:
        del inside[at[-1]]
    else:
        inside[at[-1]] = new
    return found


def wrong(value):
    """A strategy: the value with something else in one place, or in two."""

    @st.composite
    def draw_wrong(draw):
        found = value
        for _ in range(draw(st.integers(1, 2))):
            at = draw(st.sampled_from(list(places(found))))
            found = changed(found, at, draw(ODD | st.just(DEEP)))
        return found

    return draw_wrong()


ASKED = {
    **SMALLEST, "format": 1, "test": "a", "test_sizes": "b", "output": "/runs", "name": "s", "measured": None,
    "flags": {"num_samples": 3, "tracking_uri": None, "metric": ["recall_at_1"], "gpus_per_trial": 0.5, "warm_start": ["a"],
              "patience": 2, "time_budget": "3h", "prior": False, "space": "/x.py"},
    "settings": {"dataset": "emoji", "nb_epochs": 4, "base_lr": 1e-3, "lr_step": None},
    "space": {"name": "emoji", "published": {"dataset": "emoji"}, "references": "", "why": {"base_lr": "because"},
              "domains": {"nb_clusters": {"kind": "Choice", "values": [1, 2]},
                          "base_lr": {"kind": "Float", "low": 1e-4, "high": 1e-2, "log": True},
                          "mod_epoch": {"kind": "Int", "low": 1, "high": 3, "log": False}}},
}  # fmt: skip
STATE = {"status": "interrupted", "reason": "x", "owner": "process 1 on a", "processes": 1, "elapsed_s": 5.0, "ended": 1,
         "planned": 3, "best": 0.5, "untrained": None, "changed": 1.7e9}  # fmt: skip
RESULT = {"epoch": 2, "done": True, "done_all": True, "time_ms": 17, "note": "x", "test_scored_before": 0, "curve": [0.1, None],
          "test/recall_at_1": 0.5, "val/recall_at_1_best": None, "epoch_best": 1.0, "untrained": {"val/x": 0.1}}  # fmt: skip
VERDICT = {"metric": "val/recall_at_1", "winner": "001", "lines": ["a"], "gap": [{"setting": "a", "validation": 0.5, "test": None}],
           "comparisons": [{"control": "published", "on": "test classes", "pairs": 3, "difference": 0.1, "low": None,
                            "high": None, "needed": None, "found": "better"}]}  # fmt: skip
LINE = {"when": "2026-01-01", "run": "s/1", "dataset": "cub", "test_set": "a", "before": 0, "previous": "e"}


def sealed(directory, name, facts):
    try:
        write_checksummed(directory / name, facts)
    except (RecursionError, UnicodeEncodeError):  # nobody can write it either
        (directory / name).write_text("x")
    return directory / name


def attempt(work):
    """What some work gives; None where it is refused, in one line."""
    refused = ""
    try:
        return work()
    except SettingError as error:
        refused = str(error)
    assert len(refused.splitlines()) == 1
    return None


@settings(max_examples=60, deadline=None)
@given(asked=wrong(ASKED))
def test_a_record(asked, tmp_path_factory):
    """Opens, or is refused in one line; what opens can be made a space of, or that is refused."""
    directory = tmp_path_factory.mktemp("search")
    sealed(directory, "search.json", {**asked, "name": directory.name} if "name" in asked else asked)
    opened = attempt(lambda: Record.open(directory))
    if isinstance(opened, Record):
        attempt(lambda: SearchSpace.from_json(opened.asked["space"]))


@settings(max_examples=30, deadline=None)
@given(state=wrong(STATE))
def test_a_state(state, tmp_path_factory):
    """Never keeps a record from being opened."""
    directory = tmp_path_factory.mktemp("search")
    sealed(directory, "search.json", {**SMALLEST, "format": 1})
    sealed(directory, "state.json", state)
    assert Record.open(directory).state.status in ("running", "interrupted", "partial", "finished")


@settings(max_examples=50, deadline=None)
@given(result=wrong(RESULT))
def test_a_result(result, tmp_path_factory):
    """Is one, or the run has none."""
    file = sealed(tmp_path_factory.mktemp("trial"), "result.json", result)
    try:
        found = read_result(file)
    except CorruptFileError:
        return
    assert all(isinstance(value, int | float) for name, value in found.items() if "/" in name)


@settings(max_examples=60, deadline=None)
@given(verdict=wrong(VERDICT))
def test_a_verdict(verdict, tmp_path_factory):
    """Is shown, or named among what cannot be read."""
    directory = tmp_path_factory.mktemp("search")
    sealed(directory, "verdict.json", verdict)
    problems: list[str] = []
    found = reading._verdict(directory, problems)
    assert (found is None) == bool(problems)


@settings(max_examples=60, deadline=None)
@given(line=wrong(LINE))
def test_a_line_of_the_ledger(line, tmp_path_factory):
    """Costs nobody the next one."""
    file = tmp_path_factory.mktemp("runs") / ledger.LEDGER
    file.write_text(json.dumps(line) + "\n" + "[" * 50_000 + "\n")
    assert ledger.enter(file, run="s/2", dataset="cub", test_set="z") in (0, 1)
    assert ledger.broken(file)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An image store, its description, and what is known of its images."""
    root = tmp_path_factory.mktemp("images")
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / f"{number}.png")
    images = ImageList(("0.png", "1.png", "2.png"), np.zeros(3, np.int64), root)
    made = open_or_build(images, root.parent / "stores", kind="evaluation", sz_resize=8, sz_crop=8)
    return images, made.directory, read_checksummed(made.directory / "meta.json")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_description_of_a_store(store, data):
    """Is that of a store, or the store is damaged, and built anew by whoever needs it."""
    _, directory, meta = store
    sealed(directory, "meta.json", data.draw(wrong(meta)))
    try:
        found = ImageStore(directory)
        assert [image.shape for image in found.images(range(len(found)))] == [(8, 8, 3)] * len(found)
        assert (found.left_out, found.departures, found.damaged()) is not None
    except ValueError:
        pass
    finally:
        write_checksummed(directory / "meta.json", meta)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_known_of_images(store, data):
    """Is known, or found out again."""
    images, directory, _ = store
    (file,) = (directory.parent / "contents").glob("*.json")
    known, facts = contents.contents(images, directory.parent), read_checksummed(file)
    sealed(file.parent, file.name, data.draw(wrong(facts)))
    assert len(contents.contents(images, directory.parent) or ()) == len(known)
    write_checksummed(file, facts)


# -- models ------------------------------------------------------------------------------------------------


CONFIG = TrialConfig(weights="none", sz_resize=32, sz_crop=32, sz_embedding=8, batch_size=8, nb_epochs=2)


@pytest.fixture(scope="module")
def network():
    """A model without trained weights."""
    return MaskedEmbedder(CONFIG)


def model_facts(network):
    return {"settings": CONFIG.model_dump(include={"dataset", "arch", "sz_resize", "sz_crop", "sz_embedding"}),
            "mean": list(network.backbone.mean), "std": list(network.backbone.std), "epoch": 1}  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_facts_of_a_model(network, data, tmp_path_factory):
    """It loads, or is refused in one line."""
    directory = tmp_path_factory.mktemp("model")
    facts = data.draw(wrong(model_facts(network)).filter(lambda facts: DEEP not in facts.values()))
    try:
        checkpoint.write(directory, "model", network.state_dict(), facts)
    except (TypeError, RecursionError):
        return
    attempt(lambda: load(directory))


def without(name):
    return lambda tensors: tensors.pop(name)


def other(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


NOT_FINITE = lambda value: torch.full_like(value, torch.nan)  # noqa: E731
EXIT_OK = lambda value: value.long()  # noqa: E731


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("embedding.weight"), "embedding.weight is missing"),
        (without("masks"), "masks is missing"),
        (lambda tensors: tensors.update({"more\x1b[2J": torch.zeros(1)}), r"more\x1b[2J belongs to no part of it"),
        (other("embedding.weight", lambda value: value[:-1]), "has the shape (7, 1280), not (8, 1280)"),
        (other("embedding.bias", EXIT_OK), "has numbers of torch.int64"),
        (other("embedding.bias", NOT_FINITE), "is not finite"),
        (other("embedding.bias", lambda value: value.to(torch.complex64)), "torch.complex64"),
        (other("embedding.bias", lambda value: value.double()), "torch.float64"),
        (other("masks", lambda value: value[:0]), "masks has the shape (0, 8)"),
        (other("masks", lambda value: torch.ones(2, 9)), "masks has the shape (2, 9)"),
    ],
)
def test_weights_that_no_model_has_are_refused_in_one_line(network, tmp_path, change, said):
    """By name, and with what is wrong; the checksums are right."""
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    change(tensors)
    checkpoint.write(tmp_path, "model", tensors, model_facts(network))
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_model_of_several_masks_loads(network, tmp_path):
    """The number of masks is the model's own."""
    tensors = {**network.state_dict(), "masks": torch.ones(4, 8)}
    checkpoint.write(tmp_path, "model", tensors, model_facts(network))
    assert load(tmp_path).masks.shape == (4, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder):
    """A trainer, and a directory that it has saved itself into before its first epoch."""
    settings = {"train_classes": 16, "nb_clusters": 1, "num_samples_per_class": 2, "val_share": 0.25}
    config = CONFIG.changed(dataset="folder", dataset_dir=str(folder), **settings)
    trainer = Trainer(config, stores=tmp_path_factory.mktemp("stores"), device="cpu")
    directory = tmp_path_factory.mktemp("trial")
    trainer.save(directory)
    return trainer, directory


def rewritten(trained, target, change_tensors=lambda tensors: None, **facts):
    """The state once more, with other tensors or facts."""
    tensors, known = checkpoint.newest(trained[1], "trainer")
    change_tensors(tensors)
    known = {name: value for name, value in known.items() if name not in ("format", "sha256")}
    checkpoint.write(target, "trainer-00000", tensors, {**known, **facts})
    return target


@pytest.mark.parametrize(
    ("tensors", "facts", "said"),
    [
        (without("model/masks"), {}, "masks is missing"),
        (without("partition"), {}, "partition is missing"),
        (other("partition", lambda value: value.float()), {}, "partition has numbers of torch.float32"),
        (other("partition", lambda value: value[1:]), {}, "partition has the shape"),
        (other("model/embedding.bias", NOT_FINITE), {}, "embedding.bias is not finite"),
        (
            lambda t: t.update({"moments/embedding.weight:exp_avg": torch.zeros(3)}),
            {},
            "moments of embedding.weight:exp_avg fit",
        ),
        (
            lambda t: t.update({"moments/nothing:exp_avg": torch.zeros(3)}),
            {},
            "moments of nothing:exp_avg fit no parameter",
        ),
        (
            lambda t: t.update({"moments/embedding.bias:step": EXIT_OK(torch.zeros(1))}),
            {},
            "moments of embedding.bias:step",
        ),
        (lambda t: t.update({"assignment": torch.zeros(2, 2)}), {}, "its clusters are no list"),
        (lambda t: None, {"epoch": -1}, "epoch: -1"),
        (lambda t: None, {"epoch": "1"}, "epoch: '1'"),
        (lambda t: None, {"history": ["high"]}, "history.0: 'high'"),
        (lambda t: None, {"best": {"epoch": 1}}, "best.value is missing"),
        (lambda t: None, {"config": [1]}, "config: its value"),
        (lambda t: None, {"facts": 5}, "facts: 5"),
    ],
)
def test_a_state_that_no_trainer_was_in_is_refused_in_one_line(trained, tmp_path, tensors, facts, said):
    """A trial then begins again, and says so."""
    place = rewritten(trained, tmp_path, tensors, **facts)
    with pytest.raises(CheckpointError) as refused:
        trained[0].load(place)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_settings_of_a_state_that_are_not_known(trained, tmp_path):
    """As of a later version."""
    place = rewritten(trained, tmp_path, config={"dataset": "emoji", "nb_wings": 2})
    with pytest.raises(CheckpointError, match=r"its settings are not valid .*nb_wings"):
        saved_config(place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other("weight", NOT_FINITE), "weight is not finite"),
        (other("weight", EXIT_OK), "has whole numbers for weight"),
        (other("weight", lambda value: value.to(torch.complex64)), "weight has numbers of torch.complex64"),
        (other("weight", lambda value: value.to_sparse()), "weight is sparse"),
        (other("weight", lambda value: value.to("meta")), "weight has a shape and no numbers"),
        (lambda tensors: tensors.update({3: torch.zeros(2)}), "holds no state dict"),
        (lambda tensors: tensors.update({"weight": 5}), "holds no state dict"),
    ],
)
def test_a_file_of_weights_that_cannot_be_is_one_line(tmp_path, change, said):
    """Whatever torch can save."""
    tensors = dict(torch.nn.Linear(4, 3).state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(SettingError, match=r"weights=.*w\.pth") as refused:
        load_into(torch.nn.Linear(4, 3), Path(tmp_path / "w.pth"), "linear", [])
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_weights_of_half_precision_are_taken(tmp_path):
    """They are numbers of the same kind."""
    torch.save({name: value.half() for name, value in torch.nn.Linear(4, 3).state_dict().items()}, tmp_path / "w.pth")
    load_into(torch.nn.Linear(4, 3), tmp_path / "w.pth", "linear", [])
