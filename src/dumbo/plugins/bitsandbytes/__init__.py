"""The plugin `bitsandbytes`: a base model in 4 or 8 bits."""
