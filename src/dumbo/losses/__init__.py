"""Losses as functions of tensors: they know no model, no configuration, no logger."""
