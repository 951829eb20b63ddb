"""What a model writes: prompts as it was trained on them, and text generated from them."""
