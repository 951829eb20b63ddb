"""A plugin for dumbo that writes the losses of a run into a CSV file, for spreadsheets and scripts."""

import csv
from pathlib import PurePath
from typing import Annotated, ClassVar, TextIO

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError
from dumbo.metrics import MetricsCollector, RunInfo
from dumbo.plugin_loader import LoggingPlugin


class CsvLogOptions(Section):
    """Options of `csv_log`. The docstrings are what `dumbo explain trainer.csv_log.every` answers."""

    file: str = "losses.csv"
    """Name of the file, in the run's folder."""
    every: Annotated[int, Field(ge=1)] = 1
    """Write the losses of steps that are multiples of this, and leave out the others."""


class CsvLogPlugin(LoggingPlugin):
    """Writes `step,metric,value` for every loss of the run."""

    name: ClassVar[str] = "csv_log"
    section: ClassVar[str | None] = "trainer.csv_log"
    options_type: ClassVar[type[Section]] = CsvLogOptions

    def check(self, config: RunConfig) -> None:
        """Refuse a file outside of the run's folder, before anything is loaded."""
        if len(PurePath(self.options.file).parts) != 1 or not self.options.file.endswith(".csv"):
            raise ConfigError.at("trainer.csv_log.file", "expected the name of a file", "file: losses.csv")

    def get_metrics_collector(self) -> MetricsCollector:
        """Return the collector that the run hands its metrics to."""
        return CsvLog(self.options.file, self.options.every)


class CsvLog(MetricsCollector):
    """Receives all metrics and writes those that are losses."""

    def __init__(self, name: str, every: int) -> None:
        self._name = name
        self._every = every
        self._file: TextIO | None = None

    def open(self, run: RunInfo) -> None:
        """Start the file; if that fails, the run ends before the model is loaded."""
        self._file = (run.output_dir / self._name).open("w", encoding="utf-8", newline="")
        csv.writer(self._file).writerow(["step", "metric", "value"])

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write a row for each loss: `train/loss`, `eval/loss`, and what else ends so."""
        if self._file is None or step % self._every:
            return
        rows = [(step, name, value) for name, value in metrics.items() if name.endswith("/loss")]
        csv.writer(self._file).writerows(rows)
        self._file.flush()  # so that the file can be watched, and is whole when the run is killed

    def close(self, outcome: str) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()
