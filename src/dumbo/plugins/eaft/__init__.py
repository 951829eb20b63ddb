"""The plugin `eaft`: tokens count by how unsure the model is about them."""
