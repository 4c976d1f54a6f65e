"""TensorBoard events, written by the thread that calls: an error of writing is its error.

The writers of `tensorboardX` write in a thread of their own, whose errors end in a traceback and leave the
training without its log.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from spectralmoe_jax.files import naming_file

_FLUSH_SECONDS = 30.0


class EventFile:
    """A new file of TensorBoard events, in a folder that is made.

    Args:
      folder: TensorBoard's folder of the run.
      purge_step: TensorBoard drops the events of this and later steps in earlier files.

    Raises:
      OSError: the file cannot be written; has the file's name.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self.path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._event = Event
        self._flushed = time.monotonic()
        with naming_file(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self.path))
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step.

        Raises:
          OSError: the file cannot be written; has the file's name.
        """
        from tensorboardX.summary import scalar

        with naming_file(self.path):
            for name, value in values.items():
                self._write(self._event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._records.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Complete the file.

        Raises:
          OSError: the file cannot be written; has the file's name.
        """
        with naming_file(self.path):
            try:
                self._records.flush()
            finally:
                self._records.close()

    def _write(self, event: object) -> None:
        self._records.write(event.SerializeToString())  # type: ignore[attr-defined]
