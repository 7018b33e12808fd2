"""TrialConfig: every setting of a trial, immutable, and validated as a whole.

Nothing changes a configuration: what varies during training is a function of the epoch
(`dcml_tune.config.schedule.EpochPlan`).
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, model_validator

from dcml_tune.config.errors import SettingError, invalid_setting
from dcml_tune.config.fields import (
    IMAGE_DEFAULTS,
    ORIGINAL_NAMES,
    PAPER_LABEL,
    PROXY_CRITERIA,
    SAMPLED_CRITERIA,
    SEEDS,
    WORDS_FOR_WEIGHTS,
    Backend,
    Sampler,
    TrialFields,
)
from dcml_tune.config.rules import broken_rule

__all__ = [
    "IMAGE_DEFAULTS",
    "ORIGINAL_NAMES",
    "PAPER_LABEL",
    "PROXY_CRITERIA",
    "SAMPLED_CRITERIA",
    "SEEDS",
    "WORDS_FOR_WEIGHTS",
    "Backend",
    "Sampler",
    "TrialConfig",
]


class TrialConfig(TrialFields):
    """Every setting of one trial.

    Example:
        >>> from dcml_tune import TrialConfig
        >>> TrialConfig(nb_clusters=4, mod_epoch=3, nb_epochs=20).epoch_of_full_division
        6

    Raises:
        SettingError: (a ValueError) for an unknown setting, a value out of range, or settings that
            contradict each other. The message names the setting, its value, the rule and the remedy.
    """

    def __init__(self, **settings: Any) -> None:
        """Validate the settings; see the class."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SettingError(invalid_setting(error, TrialConfig.model_fields)) from None

    @model_validator(mode="before")
    @classmethod
    def _image_defaults(cls, settings: Any) -> Any:
        if isinstance(settings, dict):
            return {**IMAGE_DEFAULTS.get(settings.get("dataset", "emoji"), {}), **settings}
        return settings

    @model_validator(mode="after")
    def _agree(self) -> TrialConfig:
        if reason := broken_rule(self):
            raise ValueError(reason)
        return self

    def changed(self, **settings: Any) -> TrialConfig:
        """A copy with other values of some settings, validated again."""
        return TrialConfig(**{**self.model_dump(), **settings})

    def non_default(self) -> dict[str, Any]:
        """The settings that differ from the defaults of the data set, in the order of definition."""
        default = TrialConfig(dataset=self.dataset).model_dump()
        return {name: value for name, value in self.model_dump().items() if value != default[name]}
