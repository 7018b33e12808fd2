import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import trees

from dcml_tune.config.trial import TrialConfig
from dcml_tune.metrics.protocols import official_measures
from dcml_tune.runs.ledger import NAME, broken, enter
from dcml_tune.training.embedding import embed
from dcml_tune.training.trainer import Trainer

TINY = {"weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16, "nb_epochs": 1, "batch_size": 8}


def test_each_scoring_counts_those_before(tmp_path):
    """Of the same test images, whoever scores them, also at the same moment."""
    file = tmp_path / NAME
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: enter(file, run=f"s/{n}", dataset="cars", test_set="a"), range(20)))
    assert sorted(found) == list(range(20))
    assert enter(file, run="t", dataset="cub", test_set="b") == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["before"] for line in lines] == [*range(20), 0]
    assert broken(file) == []


@pytest.mark.parametrize(("change", "where"), [("remove", [2]), ("edit", [3]), ("tear", [])])
def test_a_line_that_was_removed_or_changed_shows(tmp_path, change, where):
    """The line after it does not follow any more; a torn one at the end costs nobody the next."""
    file = tmp_path / NAME
    for number in range(4):
        enter(file, run=f"s/{number}", dataset="cars", test_set="a")
    lines = file.read_text().splitlines()
    if change == "tear":
        file.write_text("\n".join(lines) + "\n" + lines[0][:30])
        assert enter(file, run="t", dataset="cars", test_set="a") == 4
        assert len(file.read_text().splitlines()) == 6
    else:
        lines[1] = lines[1].replace("s/1", "s/9")
        file.write_text("\n".join(lines if change == "edit" else lines[:1] + lines[2:]) + "\n")
    assert broken(file) == where + [5] * (change == "tear")


def test_a_trainer_enters_before_it_opens_a_test_image(folder, tmp_path):
    """Training and measuring the held-out classes leave no line; without a line the test classes are not scored."""
    config = TrialConfig(dataset="folder", dataset_dir=str(folder), num_samples_per_class=2, **TINY)
    trainer = Trainer(config, stores=tmp_path / "store", name="s/final", note="a further seed")
    trainer.run_epoch()
    assert not (tmp_path / NAME).exists()
    trainer.test()
    trainer.test()
    (first, second) = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert (first["run"], first["dataset"], first["before"], second["before"]) == ("s/final", "folder", 0, 1)
    assert trainer.test_scored_before == 1
    assert (first["note"], broken(tmp_path / NAME)) == ("a further seed", [])
    sealed = Trainer(config, stores=tmp_path / "other" / "store", ledger=tmp_path)
    with pytest.raises(IsADirectoryError):
        sealed.test()
    assert len(list((tmp_path / "other" / "store").iterdir())) < len(list((tmp_path / "store").iterdir()))


def test_vehicle_id_is_compared_by_drawn_galleries(tmp_path):
    """As its protocol does: recall of held-out classes is the mean of ten drawn galleries, and so is one of the test's."""
    root = trees.make_vid(tmp_path)
    config = TrialConfig(
        dataset="vid", dataset_dir=str(root), allow_partial=True, val_share=0.3, num_samples_per_class=2, **TINY
    )
    trainer = Trainer(config, stores=tmp_path / "store")
    found, data = trainer.evaluate(), trainer.data
    z, labels = embed(trainer.model, data.views, data.validation), data.labels[data.validation]
    drawn = official_measures(z, labels, data.ks)
    assert found["val/recall_at_1"] == drawn["recall_at_1"]
    assert "val/map_at_r" in found
    test = trainer.test()
    assert {"test/recall_at_1", "test/official_recall_at_1", "test_800/official_recall_at_1"} <= set(test)
