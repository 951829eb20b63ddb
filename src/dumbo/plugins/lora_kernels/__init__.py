"""The plugin `lora_kernels`: layers with LoRA that keep fewer activations."""
