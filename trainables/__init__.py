"""How Ray drives a trainer. No mathematics."""

import gc

# While torch and its kin are imported, looking for garbage takes a second of a trial's start and finds hardly any. What
# they leave behind stays to the end of the process, and is not looked at again.
_collects = gc.isenabled()
gc.disable()
try:
    from trainables.run import Run
    from trainables.trainable import DivideAndConquer
finally:
    gc.freeze()
    if _collects:
        gc.enable()

__all__ = ["DivideAndConquer", "Run"]
