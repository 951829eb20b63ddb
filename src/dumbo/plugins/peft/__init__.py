"""The plugin `peft`: trains adapters."""
