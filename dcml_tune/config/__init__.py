"""Settings of a trial and of a search, and the flags made from them."""

from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.search import SearchConfig
from dcml_tune.config.trial import TrialConfig

__all__ = ["EpochPlan", "SearchConfig", "SettingError", "TrialConfig"]
