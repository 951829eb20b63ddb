"""The plugin `tokenizer_trainer`: learns a tokenizer from the run's own texts."""
