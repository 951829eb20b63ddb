"""Functions of tensors that a model's layers call."""
