"""The plugin `exact_match`: how often the model writes exactly the held-out answer."""
