"""From rows to batches: reader -> record -> example -> batch."""
