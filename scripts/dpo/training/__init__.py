"""TRL's DPOTrainer with the batches, the reference, checkpoints and pre-flight of a run."""
