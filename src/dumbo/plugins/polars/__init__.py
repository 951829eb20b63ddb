"""The plugin `polars`: rows from JSON, JSONL, CSV, Parquet and Arrow files, local or on the hub."""
