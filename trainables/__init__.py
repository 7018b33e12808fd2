"""How Ray drives a trainer. No mathematics."""

import gc

from dcml_tune.utils.openmp import let_threads_spin_briefly

let_threads_spin_briefly()  # here, because a worker of Ray imports this package before torch

# Garbage collection during the imports of torch and others takes a second of a trial's start and finds hardly any garbage.
# The imported objects live until the process ends, so they are frozen: later collections skip them.
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
