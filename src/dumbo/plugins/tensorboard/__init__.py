"""The plugin `tensorboard`: the run's metrics and configuration in TensorBoard."""
