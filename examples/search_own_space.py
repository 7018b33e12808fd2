"""Search a space of one's own from Python, and read the best trial.

    python examples/search_own_space.py [OUTPUT]

The command line does the same: `python -m dcml_tune.search emoji --space examples/search_own_space.py ...`. The search loads
this file and takes SPACE from it. A space may contain every setting of docs/settings.md, except those that
search_spaces/constant.py lists.
"""

from pathlib import Path

from dcml_tune.cli.parser import run_command
from dcml_tune.runs.study import read_study
from dcml_tune.search.__main__ import main as search
from search_spaces.space import Choice, Float, SearchSpace

SPACE = SearchSpace(
    name="emoji",
    # The setting of trial 0, to which others are compared. What is not named takes its default.
    published={
        "ratio_classes": 0.1,
        "nb_epochs": 2,
        "nb_clusters": 2,
        "mod_epoch": 1,
        "base_lr": 1e-4,
        "mask_lr_mult": 100.0,
        "emb_lr_mult": 10.0,
        "sz_embedding": 128,
        "batch_size": 32,
    },
    domains={"nb_clusters": Choice([1, 2]), "mask_lr_mult": Float(1.0, 1000.0, log=True)},
    why={"nb_clusters": "1 is training without division", "mask_lr_mult": "published: 1 and 100"},
)


def main(argv: list[str]) -> int:
    """Run three trials, print the settings of the best one, and return the exit code of the search."""
    output = Path(argv[0] if argv else "runs")
    status = search([
        "emoji", "--space", __file__, "--num-samples", "3", "--name", "own-space", "--output-dir", str(output), "--quiet",
        "--confirm", "0", "--final", "none",  # no further comparison; the test classes stay closed
    ])  # fmt: skip
    trials = read_study(output / "own-space")  # Optuna's; a trial that failed has no value
    best = max(trials, key=lambda trial: trial.value or 0.0)
    if best.value is not None:
        print(f"best of {len(trials)} trials: MAP@R {best.value:.1%} with {best.params}")
    return status


if __name__ == "__main__":
    run_command(main)
