"""Find the images of a folder that are most similar to a query, by a trained model.

    python examples/find_similar_images.py MODEL FOLDER QUERY

MODEL is what train_one_setting.py wrote, the directory of a trial, or that of a checkpoint. FOLDER is searched with all folders
below it. The nearest images are printed with their cosine similarity to QUERY, the most similar first.
"""

from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from dcml_tune.cli.parser import run_command
from dcml_tune.data import ImageList
from dcml_tune.data.decoding import SUFFIXES
from dcml_tune.models.embedder import MaskedEmbedder, load
from dcml_tune.training.embedding import embed_images


def main(argv: list[str]) -> int:
    """Embed the folder and the query, and print the nearest images."""
    parser = ArgumentParser(description="Find the images of a folder that are most similar to a query.")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    parser.add_argument("--count", type=int, default=5, help="number of images to print")
    given = parser.parse_args(argv)
    model = load(given.model)
    files = [path for path in sorted(given.folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    names = [path.relative_to(given.folder).as_posix() for path in files]
    if not names:
        parser.error(f"{given.folder}: holds no image file; give the directory of the images")
    similarities = embed(model, given.folder, names) @ embed(model, given.query.parent, [given.query.name])[0]
    for index in similarities.argsort(descending=True)[: given.count].tolist():
        print(f"{similarities[index]:.3f}  {names[index]}")
    return 0


def embed(model: MaskedEmbedder, root: Path, names: list[str]) -> Tensor:
    """Embeddings of images, as unit vectors (N, D). Images are resized and cropped as in the model's training."""
    images = ImageList(tuple(names), np.zeros(len(names), dtype=np.int64), root)
    with TemporaryDirectory() as store:  # decoded images; keep the directory to embed the same images faster again
        return embed_images(model, images, model.config, Path(store))[0]


if __name__ == "__main__":
    run_command(main)
