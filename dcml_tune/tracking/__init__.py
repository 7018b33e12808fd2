"""Tracking of runs, metrics and models in MLflow. No other package imports mlflow."""

from dcml_tune.tracking.provenance import environment_tags
from dcml_tune.tracking.reading import best_model
from dcml_tune.tracking.recovery import end_dead, flush
from dcml_tune.tracking.tracker import Tracker
from dcml_tune.tracking.uris import absolute_uri, compare_url, tracking_uri, ui_command

__all__ = [
    "Tracker",
    "absolute_uri",
    "best_model",
    "compare_url",
    "end_dead",
    "environment_tags",
    "flush",
    "tracking_uri",
    "ui_command",
]
