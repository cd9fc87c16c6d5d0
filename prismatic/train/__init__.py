"""Training: sharding, optimization, the loop, checkpoints and metrics. Knows configs, the model and the loaders."""
