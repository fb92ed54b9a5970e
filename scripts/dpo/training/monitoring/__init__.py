"""What is watched while a run trains: alerts, drift, completions, the W&B run."""
