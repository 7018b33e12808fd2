"""Rules between settings and a backbone, which are known once the backbone is built."""

from __future__ import annotations

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.backbones import Backbone


def refuse_unfit(config: TrialConfig, backbone: Backbone) -> None:
    """Check that settings fit a backbone.

    Raises:
        SettingError: if it pools by itself and `features_pooling` says how, or it has fewer features than
            `init_method=pca` would need.
    """
    if backbone.pooled and config.features_pooling != "avg":
        raise SettingError(
            f"features_pooling={config.features_pooling}: {config.arch} pools by itself; leave it at avg"
        )
    if config.init_method == "pca" and config.sz_embedding > backbone.dim:
        raise SettingError(
            f"sz_embedding={config.sz_embedding}: must be at most {backbone.dim}, the number of features of "
            f"{config.arch}, with init_method=pca; lower it or take another init_method"
        )
