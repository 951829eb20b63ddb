"""The plugin `samples`: what the model writes before, during and after the training."""
