"""Clustering of the training images: k-means, matching of consecutive clusterings, division of clusters."""

from dcml_tune.clustering.kmeans import kmeans
from dcml_tune.clustering.partition import divide, match
from dcml_tune.clustering.reclustering import recluster

__all__ = ["divide", "kmeans", "match", "recluster"]
