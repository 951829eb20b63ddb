"""The plugin `diffusion`: trains language models that fill in masked tokens, and lets them write."""
