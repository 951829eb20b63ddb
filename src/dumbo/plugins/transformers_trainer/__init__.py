"""The plugin `transformers_trainer`: trains with Transformers' Trainer."""
