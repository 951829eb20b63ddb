"""dumbo: fine-tune language models from one YAML file, every ability a plugin."""

__version__ = "0.1.0"
