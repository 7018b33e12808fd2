"""Train one setting in plain PyTorch, without Ray, and print recall@1 on the held-out classes after each epoch.

    python examples/train_one_setting.py [DIRECTORY]

The data set is a part of the embedded one, so that it takes seconds on a CPU. The best model is written into
DIRECTORY/model (default: runs/example/model).
"""

from pathlib import Path

from dcml_tune.cli.parser import run_command
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.trainer import Trainer

CONFIG = TrialConfig(
    dataset="emoji",
    ratio_classes=0.08,  # of the training classes; a fifth of those is held out
    nb_epochs=3,
    nb_clusters=2,  # learners
    mod_epoch=1,  # the clusters are computed anew, or divided, every epoch
    force_full_embedding_epoch=2,  # the last epoch trains the full embedding
    base_lr=1e-4,
    emb_lr_mult=10.0,
    mask_lr_mult=100.0,
    masking_lambda=0.01,
    sz_embedding=128,
    batch_size=32,
    num_samples_per_class=4,
    batch_sampler="adaptbalanced",
    sampler="distanceweighted",
)


def main(argv: list[str]) -> int:
    """Train, measure, and write the best model."""
    directory = Path(argv[0] if argv else "runs/example")
    trainer = Trainer(CONFIG, stores=directory / "store")
    print(f"untrained: recall@1 {trainer.untrained()['val/recall_at_1']:.1%}")
    while trainer.epoch < CONFIG.nb_epochs:
        found = trainer.run_epoch()
        learners, recall = int(found["clusters/count"]), found["val/recall_at_1"]
        print(f"epoch {trainer.epoch}: learners {learners}, loss {found['train/loss']:.3f}, recall@1 {recall:.1%}")
    trainer.save(directory / "model")
    return 0


if __name__ == "__main__":
    run_command(main)
