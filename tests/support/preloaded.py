"""What the fork server imports before it forks: all that is in the rooms, which takes seconds."""

import dpo  # before all else, that no library speaks

# isort: split
import gc
import importlib
import pkgutil

for module in pkgutil.walk_packages(dpo.__path__, "dpo."):
    importlib.import_module(module.name)
gc.collect()
gc.freeze()  # a run collects garbage several times, and need not look through all of this
