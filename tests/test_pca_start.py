"""`init_method=pca`: the embedding layer starts as a PCA of the features of the images that train."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.search.disk import model_bytes
from dcml_tune.training.embedding import penultimate_features
from dcml_tune.training.pca_start import projection
from dcml_tune.training.trainer import Trainer

NETWORK = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32}


@pytest.fixture
def config(small):
    return TrialConfig(**small, init_method="pca", nb_epochs=2, nb_clusters=2, mod_epoch=1)


def test_it_is_the_pca_of_scikit_learn():
    """Up to the sign of each direction, which is that of its largest entry."""
    features = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13) + 5
    weight, bias = projection(features, 4)
    theirs = PCA(4, svd_solver="full").fit(features.double().numpy())
    np.testing.assert_allclose(weight.abs().numpy(), np.abs(theirs.components_), atol=1e-6)
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    projected = features.double() @ weight.T + bias
    np.testing.assert_allclose(projected.abs().numpy(), np.abs(theirs.transform(features.double().numpy())), atol=1e-5)


@pytest.mark.parametrize("images", [3, 50])
def test_rows_are_orthonormal_also_with_few_images(images):
    """Three images span two directions; the other ones complete them."""
    weight, bias = projection(torch.randn(images, 12) + 1, 8)
    torch.testing.assert_close(weight @ weight.T, torch.eye(8, dtype=torch.float64))
    assert torch.isfinite(bias).all()


def test_all_dimensions_are_the_identity_of_centred_features():
    """There is nothing to project."""
    features = torch.rand(20, 6)
    weight, bias = projection(features, 6)
    assert torch.equal(weight, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(bias, -features.double().mean(0))


def test_a_training_starts_from_the_images_that_train(config, tmp_path):
    """Neither those that are held out nor the test images; the layer alone is different, and no random number is drawn."""
    trainer = Trainer(config, stores=tmp_path / "store", device="cpu")
    other = Trainer(config.changed(init_method=None), stores=tmp_path / "store", device="cpu")
    assert len(trainer.data.train) < len(trainer.data.labels)
    weight, bias = projection(penultimate_features(other.model, other.data.views, other.data.train), 8)
    ours, theirs = trainer.model.state_dict(), other.model.state_dict()
    assert torch.equal(ours["embedding.weight"], weight.float())
    assert torch.equal(ours["embedding.bias"], bias.float())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("embedding"))
    assert trainer.untrained() == other.untrained()  # of the features, as for all trials of a search


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_ends_as_one_that_ran_through(workers, config, tmp_path):
    """The saved layer and exponent are used, and images are augmented again as they were, by any number of processes."""
    images = {"album": "RandAugment", "crop_scale": 0.4, "sz_resize": 64, "sz_crop": 64}
    config = config.changed(features_pooling="gem", num_workers=workers, **images)
    ends = []
    for epochs in ([2], [1, 2]):
        for until in epochs:
            trainer = Trainer(config, stores=tmp_path / "store", device="cpu")
            if until != epochs[0]:
                trainer.load(tmp_path / "saved")
            while trainer.epoch < until:
                trainer.run_epoch()
            trainer.save(tmp_path / "saved")
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("build", [MaskedEmbedder, model_bytes])
def test_more_dimensions_than_features_are_refused(build):
    """Before anything runs: the check of a search builds the backbone, too."""
    config = TrialConfig(**NETWORK, init_method="pca", sz_embedding=4096)
    with pytest.raises(
        SettingError, match=r"sz_embedding=4096: must be at most \d+, the number of features of test_res"
    ):
        build(config)


def test_the_projection_is_computed_once(config, tmp_path, monkeypatch):
    """Trials of one search read it; other images, weights or sizes get their own, and a damaged file is made anew."""
    stores, computed = tmp_path / "store", []

    def features(model, views, rows):
        computed.append(len(rows))
        return penultimate_features(model, views, rows)

    monkeypatch.setattr("dcml_tune.training.pca_start.penultimate_features", features)

    def layer(**changes):
        trainer = Trainer(config.changed(**changes), stores=stores, device="cpu")
        return trainer.model.embedding.weight.detach().clone()

    first = layer()
    assert torch.equal(layer(base_lr=1e-5, nb_epochs=3), first)
    assert len(computed) == 1
    others = [layer(fold=1), layer(seed=9), layer(features_pooling="gem"), layer(sz_embedding=4)]
    assert len(computed) == 5
    assert not any(other.shape == first.shape and torch.equal(other, first) for other in others)
    for file in stores.glob("pca-*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(layer(), first)
    assert len(computed) == 6
