"""The plugin `grokfast`: amplifies the slow part of the gradient."""
