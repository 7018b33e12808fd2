"""One trial in plain PyTorch."""

from dcml_tune.training.trainer import Trainer

__all__ = ["Trainer"]
