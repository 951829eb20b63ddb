"""Fine-tunes sparse models and keeps their zeros."""
