"""The embedding network and its backbones."""

from dcml_tune.models.embedder import MaskedEmbedder, load

__all__ = ["MaskedEmbedder", "load"]
