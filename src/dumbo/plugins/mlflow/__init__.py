"""The plugin `mlflow`: the run's metrics and configuration in MLflow."""
