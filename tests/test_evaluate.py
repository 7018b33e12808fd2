"""`python -m dcml_tune.evaluate`: what it prints of real models on real images."""

import json

import pytest
import trees

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.datasets import official_counts as counts
from dcml_tune.evaluate import main
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils.checkpoint import CheckpointError

TINY = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small copies of the data sets, and stores of their images."""
    root = tmp_path_factory.mktemp("data")
    for name in ("cars", "inshop", "vid"):
        trees.MAKERS[name](root / name)
    return root


@pytest.fixture
def evaluate(data, tmp_path, capsys):
    """Runs the command on an untrained model of a data set; gives what it prints, or its JSON."""

    def run(name, *words, as_json=True, **settings):
        place = tmp_path / f"model-{name}"
        MaskedEmbedder(TrialConfig(dataset=name, **{**TINY, **settings})).save(place)
        common = ["--dataset-dir", str(data / name), "--output-dir", str(data / "runs"), "--clusterings", "2"]
        assert main([str(place), *common, *(["--json"] if as_json else []), *words]) == 0
        told = capsys.readouterr()
        return json.loads(told.out) if as_json else told.out + told.err

    return run


def test_measures_are_those_of_the_trainer(evaluate, data):
    """Recall, MAP@R and mARP of the command equal what the trainer scores at its end; NMI and AMI come with a deviation."""
    found = evaluate("cars", "--allow-partial")
    (model,) = found["models"]
    (result,) = model["results"]
    config = TrialConfig(dataset="cars", dataset_dir=str(data / "cars"), allow_partial=True, nb_epochs=1, **TINY)
    expected = Trainer(config, stores=data / "runs" / "store").test()
    for name, value in expected.items():
        assert result["measures"][name.removeprefix("test/")] == pytest.approx(value, abs=1e-6)
    assert {"nmi", "nmi_std", "ami", "ami_std", "recall_at_8"} <= set(result["measures"])
    assert (model["arch"], model["chosen_by"], found["published"]) == ("test_resnet", "held_out", [])


def test_vehicle_id_is_measured_by_both_protocols(evaluate):
    """Each of the three lists whole, and by the official protocol, labelled apart."""
    results = evaluate("vid", "--allow-partial")["models"][0]["results"]
    assert [(each["name"], each["protocol"]) for each in results] == [
        (size, protocol) for size in ("2400", "1600", "800") for protocol in ("whole", "official")
    ]
    said = evaluate("vid", "--allow-partial", as_json=False)
    assert "vid, 800 (official), in percent" in said
    assert " ± " in said


def test_inshop_searches_the_gallery(evaluate):
    """Its k, and its protocol's name."""
    (result,) = evaluate("inshop", "--allow-partial")["models"][0]["results"]
    assert result["protocol"] == "gallery"
    assert [name for name in result["measures"] if name.startswith("recall")] == [
        f"recall_at_{k}" for k in (1, 10, 20, 30, 50)
    ]


def test_published_values_stand_beside_ours_where_the_protocol_is_the_same(evaluate, monkeypatch):
    """On the test classes of a whole copy; never on a partial one, on held-out classes, or with images left out."""
    assert "published, learned" not in evaluate("cars", "--allow-partial", as_json=False)
    small = {"train classes": 12, "train images": 72, "test classes": 8, "test images": 48}
    monkeypatch.setitem(counts.COUNTS, "cars", small)
    said = evaluate("cars", as_json=False)
    assert "published, learned (TPAMI 2021, authors' README)" in said
    assert "86.9" in said
    assert "the best epoch by the test classes" in said
    found = evaluate("cars")["published"]
    assert {"recall_at_1", "nmi", "marp"} <= {each["metric"] for each in found}
    assert not {"map_at_r", "ami"} & {each["metric"] for each in found}
    assert evaluate("cars", "--skip-unreadable")["published"] == []
    assert evaluate("cars", "--set", "validation")["published"] == []


def test_validation_is_the_classes_that_were_held_out(evaluate, data):
    """Those of the model's own share and seed; a model that held none out has none."""
    found = evaluate("cars", "--allow-partial", "--set", "validation", val_share=0.5)
    config = TrialConfig(
        dataset="cars", dataset_dir=str(data / "cars"), allow_partial=True, nb_epochs=1, val_share=0.5, **TINY
    )
    expected = Trainer(config, stores=data / "runs" / "store").evaluate()
    (result,) = found["models"][0]["results"]
    assert result["name"] == "validation"
    assert result["measures"]["recall_at_1"] == pytest.approx(expected["val/recall_at_1"], abs=1e-6)
    with pytest.raises(SettingError, match="held no classes out"):
        evaluate("cars", "--allow-partial", "--set", "validation", val_share=0.0)


def test_a_model_chosen_on_test_classes_is_labelled(evaluate):
    """In the table and in the document."""
    said = evaluate("cars", "--allow-partial", as_json=False, protocol="paper")
    assert "paper protocol: epochs and trials are chosen on the test classes" in said
    assert evaluate("cars", "--allow-partial", protocol="paper")["models"][0]["chosen_by"] == "paper"


def test_several_models_share_a_table(data, tmp_path, capsys):
    """A search gives its retrained models; a run of train its best; the untrained network has a row on request."""
    for name in ("final-003", "final-003-seed-1", "final-published"):
        place = tmp_path / "s" / "trials" / name / "best-00002"
        MaskedEmbedder(TrialConfig(dataset="cars", **TINY)).save(place)
    MaskedEmbedder(TrialConfig(dataset="cars", **TINY)).save(tmp_path / "t" / "checkpoint" / "best-00001")
    common = ["--dataset-dir", str(data / "cars"), "--output-dir", str(data / "runs"), "--allow-partial"]
    assert main([str(tmp_path / "s"), str(tmp_path / "t"), *common, "--clusterings", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [each["model"].rpartition("/")[2] for each in found] == ["final-003", "final-published", "t"]
    assert "nmi" not in found[0]["results"][0]["measures"]


def test_the_untrained_network_has_a_row(evaluate):
    """The penultimate features of the pretrained backbone."""
    found = evaluate("cars", "--allow-partial", "--untrained", arch="tf_efficientnet_lite0")["models"]
    assert [each["chosen_by"] for each in found] == ["held_out", "untrained"]
    recall = [each["results"][0]["measures"]["recall_at_1"] for each in found]
    assert recall[1] != recall[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing: no such directory, and no id of an MLflow run"),
        (["."], "cannot be read"),
        (["search"], "has not retrained its winner; give one of its trials, such as search/trials/003"),
        (["0" * 32], "no MLflow store there"),
        (["model"], "--allow-partial"),
        (["model", "other"], "cannot share a table"),
        (["model", "--device", "warp"], "--device warp: must be a device of this machine; give cpu"),
        (["model", "--device", "cuda:99"], "--device cuda:99: must be a device of this machine; give cpu"),
        (["model", "--device", ""], "--device '': must be a device of this machine; give cpu"),
    ],
)
def test_bad_input_is_one_line(words, said, data, tmp_path, monkeypatch):
    """With the remedy, and before anything is measured."""
    monkeypatch.chdir(tmp_path)
    MaskedEmbedder(TrialConfig(dataset="cars", **TINY)).save(tmp_path / "model")
    MaskedEmbedder(TrialConfig(dataset="emoji", **TINY)).save(tmp_path / "other")
    MaskedEmbedder(TrialConfig(dataset="cars", **TINY)).save(tmp_path / "search" / "trials" / "003" / "best-00001")
    with pytest.raises((SettingError, CheckpointError)) as refused:
        main([*words, "--dataset-dir", str(data / "cars"), "--output-dir", "runs"])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
