"""Measures of retrieval (recall@k, MAP@R, mARP, R-precision) and of clustering (NMI, AMI)."""

from dcml_tune.metrics.clustering import ami, nmi
from dcml_tune.metrics.retrieval import map_at_r, marp, r_precision, recall_at_k, retrieval_measures

__all__ = ["ami", "map_at_r", "marp", "nmi", "r_precision", "recall_at_k", "retrieval_measures"]
