"""A run as an event file: scalars by step, the configuration as hyperparameters and as text, and how the run ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dumbo.metrics import RunInfo
from dumbo.run_folder import yaml_text
from dumbo.trackers.flatten import Flat, as_text, flatten
from dumbo.trackers.surroundings import KeptFile, remove_if_within, writable_folder
from dumbo.trackers.tracker import End, Tracker

if TYPE_CHECKING:
    from dumbo.plugins.tensorboard.plugin import TensorboardOptions


class TensorboardTracker(Tracker):
    """Writes one event file, without a thread: what cannot be written is known at once."""

    name = "tensorboard"
    advice = "write another folder into trainer.tensorboard.log_dir"

    def __init__(self, options: TensorboardOptions, say: Callable[[str], None]) -> None:
        """Nothing is imported yet."""
        super().__init__(say)
        self._options = options
        self._stream: BinaryIO | None = None
        self._records: Any = None
        self._kept: KeptFile | None = None
        self._file = Path()
        self._home = Path()
        self._flushed = 0.0

    def start(self, run: RunInfo) -> None:
        """Create the file, with the configuration in it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        log_dir = Path(self._options.log_dir) / run.name if self._options.log_dir else run.output_dir / "tensorboard"
        writable_folder(log_dir, "trainer.tensorboard.log_dir")
        # The name that TensorBoard looks for; its own writer would put the name of this machine into it.
        self._file = log_dir / f"events.out.tfevents.{int(time.time()):010d}.dumbo.{os.getpid()}"
        self._home = log_dir.parent if self._options.log_dir else run.output_dir
        self._stream = self._file.open("xb")
        self._kept = KeptFile(self._file)
        self._records = RecordWriter(self._stream)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if run.resumed is not None:
            # TensorBoard then forgets what other files have of these steps: they come again.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=run.step + 1, session_log=start))
        self._write_summary(_session_start(run.name, flatten(run.config)))
        self._write_summary(_text("config", _as_code(yaml_text(run.config))))
        self._flush()
        self.tell(f"tensorboard --logdir {self._options.log_dir or log_dir} shows the run")

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Write a scalar for each metric; TensorBoard has 32 bits for a number, NaN and infinity among them."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=path, simple_value=value) for path, value in metrics.items()]
        self._write_summary(Summary(value=values), step)
        if time.monotonic() - self._flushed >= self._options.flush_secs:
            self._flush()

    def finish(self, end: End) -> None:
        """Write how the run ended, and close the file."""
        self._write_summary(_session_end(end.outcome))
        self._write_summary(_text("outcome", f"{end.outcome} after {end.steps or 0} steps"), end.steps or 0)
        self._flush()
        self.abandon()
        if end.left_nothing:
            self._file.unlink()
            if not any(self._file.parent.iterdir()):
                remove_if_within(self._file.parent, self._home)

    def abandon(self) -> None:
        """Close the file."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write_summary(self, summary: Any, step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def _flush(self) -> None:
        assert self._kept is not None
        self._kept.check()
        self._records.flush()
        self._flushed = time.monotonic()


def _session_start(name: str, config: Mapping[str, Flat]) -> Any:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in config.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = as_text(value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _hyperparameters(metadata.SESSION_START_INFO_TAG, data)


def _session_end(outcome: str) -> Any:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    # There is no state for a run that was stopped; the text `outcome` has the word.
    states = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
    status = states.get(outcome, api_pb2.STATUS_UNKNOWN)
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hyperparameters(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _hyperparameters(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto import tensor_pb2, types_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata

    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
    about = metadata.create_summary_metadata(display_name=None, description=None)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)])


def _as_code(text: str) -> str:
    """Markdown, which TensorBoard renders, for a text that stays as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
