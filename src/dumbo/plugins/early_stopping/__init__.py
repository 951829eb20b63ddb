"""The plugin `early_stopping`: ends the training when evaluations get no better."""
