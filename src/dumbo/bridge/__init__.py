"""The only room that knows other libraries' object models: Transformers' Trainer, its arguments and its callbacks."""
