"""How Ray drives a trainer. No mathematics."""

import gc

# While torch and its kin are imported, looking for garbage takes a second of a trial's start and finds hardly any. What
# they leave behind stays to the end of the process, and is not looked at again.
_collects = gc.isenabled()
gc.disable()
try:
    from trainables.divide_and_conquer import DivideAndConquer, Run
finally:
    gc.freeze()
    if _collects:
        gc.enable()

__all__ = ["DivideAndConquer", "Run"]
