"""The plugin `huggingface`: reads rows through the library Datasets."""
