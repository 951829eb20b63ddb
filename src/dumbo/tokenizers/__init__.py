"""What every plugin that brings a tokenizer needs: checks of its section, and its chat template."""
