"""The plugin `wandb`: the run's metrics and configuration in Weights & Biases."""
