"""The plugin `liger`: Liger's Triton kernels in the model and in the loss."""
