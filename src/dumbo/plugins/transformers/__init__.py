"""Loads model and tokenizer with Transformers, from a folder or from the hub."""
