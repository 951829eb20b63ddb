"""The plugin `torchao`: a base model in the 8-bit formats of PyTorch."""
