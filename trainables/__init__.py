"""How Ray drives a trainer. No mathematics."""

from trainables.divide_and_conquer import DivideAndConquer, Run

__all__ = ["DivideAndConquer", "Run"]
