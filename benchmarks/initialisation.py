"""What does the start of the embedding layer matter? The default recipe of `emoji`, with PyTorch's start and with a PCA.

    python benchmarks/initialisation.py [--folds 5] [--output runs/initialisation.jsonl]

Each run trains 6 epochs with one thread and is measured on held-out classes after its last epoch. Run n holds out fold n and has
seed n, so the two starts are compared on the same images with the same seed. No test class is read. Each finished run is a line
of the output, so a benchmark that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import t

METRIC = "val/recall_at_1"
STARTS = {"published": None, "pca": "pca"}


def train(start: str, fold: int, stores: Path) -> list[float]:
    """Train, and return the metric after each epoch, as shares of 1."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer
    from search_spaces.emoji import SPACE

    torch.set_num_threads(1)
    recipe = {**SPACE.published, **SPACE.published_point()[0]}
    config = TrialConfig(**{**recipe, "init_method": STARTS[start], "val_share": 0.2, "fold": fold, "seed": fold})
    trainer = Trainer(config, stores=stores)
    return [trainer.run_epoch()[METRIC] for _ in range(config.nb_epochs)]


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/initialisation.jsonl"))
    asked = parser.parse_args()
    output = asked.output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    folds = range(asked.folds)
    for fold in folds:
        for start in STARTS:
            if (start, fold) not in _read(output):
                curve = train(start, fold, output.parent / "store")
                with output.open("a") as file:
                    file.write(json.dumps({"key": [start, fold], "curve": curve}) + "\n")
    found = _read(output)
    values = {start: 100 * np.array([found[start, fold][-1] for fold in folds]) for start in STARTS}
    print(f"| start of the embedding layer | {METRIC}, {asked.folds} folds |\n|---|---|")
    for start, each in values.items():
        print(f"| {start} | {each.mean():.1f} ± {each.std(ddof=1):.1f} |")
    gain = values["pca"] - values["published"]
    half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    print(
        f"\npca - published, paired: {gain.mean():+.1f} ± {half:.1f} points (half of the 95 % interval of Student's t)"
    )


def _read(file: Path) -> dict[tuple[str, int], list[float]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {tuple(each["key"]): each["curve"] for each in map(json.loads, lines)}


if __name__ == "__main__":
    main()
