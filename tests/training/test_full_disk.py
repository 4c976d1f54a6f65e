"""A log that cannot be written is an OSError that names its file, in the thread that trains."""

import contextlib
import shutil
import struct
import subprocess
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from spectralmoe_jax.training.logging import MetricsLog
from spectralmoe_jax.training.tensorboard import EventFile


@contextlib.contextmanager
def file_size(limit):
    """A limit on the size of files stands in for a full disk or a quota."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_log(folder, records=2000):
    with MetricsLog(folder, 0) as log:
        for step in range(records):
            log.write(step, "train", {"loss": 1.0, "learning_rate": 2.0})


def test_a_limit_on_the_size_of_files(tmp_path):
    threads = threading.active_count()
    with file_size(20_000), pytest.raises(OSError, match="large") as error:
        write_log(tmp_path)
    assert str(tmp_path) in error.value.filename
    assert threading.active_count() == threads


def test_events_that_fill_the_disk_only_at_the_end(tmp_path):
    events = EventFile(tmp_path / "tensorboard", purge_step=1)
    events.add(1, {f"train/{number}": 1.0 for number in range(30)})
    with file_size(100), pytest.raises(OSError, match="large") as error:
        events.close()
    assert error.value.filename == str(events.path)


def test_a_full_disk(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match="No space left") as error:
            write_log(tmp_path)
        assert str(folder) in error.value.filename
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def records_of(data):
    """The records of a file of TensorFlow records: length, checksum, content, checksum."""
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_the_events_are_tensorboards(tmp_path):
    """Step 3 on, after the mark that drops these steps of earlier files."""
    events = EventFile(tmp_path, purge_step=3)
    events.add(3, {"train/loss": 0.5})
    events.add(4, {"train/loss": 0.25, "evaluate/miou": 0.125})
    events.close()
    version, start, *found = map(Event.FromString, records_of(events.path.read_bytes()))
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    values = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert values == [(3, "train/loss", 0.5), (4, "train/loss", 0.25), (4, "evaluate/miou", 0.125)]
