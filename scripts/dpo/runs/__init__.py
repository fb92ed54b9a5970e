"""A run's folder and process: checkpoints, W&B, the launcher, sweeps, the dashboard."""
