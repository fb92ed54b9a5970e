"""What the fork server imports before it forks: all that is in the rooms, and what a trainer then
imports by itself, which takes seconds."""

import dpo  # before all else, that no library speaks

# isort: split
import gc
import importlib
import os
import pkgutil

for module in pkgutil.walk_packages(dpo.__path__, "dpo."):
    importlib.import_module(module.name)
os.environ["DS_ACCELERATOR"] = "cpu"  # as the launcher has it where runs are on the CPU
for name in ("deepspeed", "trackio"):
    importlib.import_module(name)
gc.collect()
gc.freeze()  # a run collects garbage several times, and need not look through all of this
