"""The plugin `cut_cross_entropy`: the loss without ever holding the logits."""
