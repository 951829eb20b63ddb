"""The plugin `spectrum`: trains the weights with the most signal in them."""
