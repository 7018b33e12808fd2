"""Search spaces and published results, one module for each data set. No training code."""

from search_spaces.space import Choice, Float, Int, SearchSpace, Start, When
from search_spaces.user_file import load_space

__all__ = ["Choice", "Float", "Int", "SearchSpace", "Start", "When", "load_space"]
