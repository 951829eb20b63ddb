"""The plugin `dft`: tokens count by how likely the model finds them."""
