"""What the fork server imports before it forks: all that a run takes, and that takes seconds."""

import dpo  # noqa: F401  before all else, that no library speaks

# isort: split
import gc

import trl  # noqa: F401
import wandb  # noqa: F401

import train  # noqa: F401
from dpo.evaluation import evaluation  # noqa: F401
from dpo.reports import run_report  # noqa: F401
from dpo.training import build, held_out_scores, publish  # noqa: F401

gc.collect()
gc.freeze()  # a run collects garbage several times, and need not look through all of this
