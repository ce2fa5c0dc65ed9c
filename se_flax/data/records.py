"""Random access, from any thread, to the records that tfds writes as ArrayRecord or TFRecord."""

import bisect
import concurrent.futures
import os
import re
import resource
import struct
from collections.abc import Sequence
from typing import TypeAlias

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError as ProtoError
from tensorflow_datasets.proto import tf_example_pb2

from se_flax.data.decode import DecodeError
from se_flax.errors import UnreachableError, UserError
from se_flax.storage import is_remote

Paths = Sequence[str | os.PathLike]
OUT_OF_REACH = re.compile(r'(?i)permanent error|retry policy')  # of Google's C++ client
Records: TypeAlias = grain.sources.RandomAccessDataSource[bytes]


def open_records(paths: Paths, file_format: str) -> Records:
    """Opens shards, in order, as one sequence; UserError for a format or shard it cannot read."""
    if file_format == 'tfrecord':
        if is_remote(paths[0]):
            raise UserError(
                f'{os.fspath(paths[0])}: TFRecord files must be on a disk or a mount; ArrayRecord '
                f'files may be in a bucket'
            )
        return TFRecords(paths)
    if file_format != 'array_record':
        raise UserError(
            f'records are stored as {file_format!r}; se_flax reads array_record and tfrecord'
        )
    # ArrayRecord keeps each shard open, and the soft limit is often 1024.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1024 + 2 * len(paths)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        return ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError as error:
        check_reached(error)
        raise UserError(f'a shard is damaged or truncated: {error}') from error


def check_reached(error: Exception) -> None:
    """Raises UnreachableError if ArrayRecord raised `error` because of a bucket, not of a record.

    Its reader tries again for 15 minutes before that.
    """
    if OUT_OF_REACH.search(str(error)):
        raise UnreachableError(f'cannot reach the data: {" ".join(str(error).split())}') from error


class TFRecords:
    """Records of TFRecord shards; each is one `pread` at a position known from the headers."""

    def __init__(self, paths: Paths):
        self._paths = [os.fspath(path) for path in paths]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            spans = list(pool.map(scan, self._paths))
        self._ends = np.cumsum(list(map(len, spans))).tolist()
        self._spans = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: int) -> bytes:
        offset, length = self._spans[i].tolist()
        # Opened each time: a training set has more shards than a process may hold open files.
        file = os.open(self._paths[bisect.bisect_right(self._ends, i)], os.O_RDONLY)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)


def scan(path: str) -> np.ndarray:
    """Finds the records of a TFRecord file: int64 `[records, 2]`, offset and length in bytes.

    A record is 8 bytes of length, 4 of checksum, the data, and 4 of checksum
    (https://www.tensorflow.org/tutorials/load_data/tfrecord). Checksums are not compared.
    """
    spans, at = [], 0
    with open(path, 'rb', buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            header = os.pread(file.fileno(), 8, at)
            length = struct.unpack('<Q', header)[0] if len(header) == 8 else size
            spans.append((at + 12, length))
            at += 16 + length
    if at > size:
        raise UserError(
            f'{path} is truncated or not a TFRecord file: '
            f'its record {len(spans) - 1} ends at byte {at} of {size}'
        )
    return np.array(spans, np.int64).reshape(-1, 2)


def parse_example(record: bytes) -> tuple[bytes, int]:
    """Returns `image` and `label` of a serialized `tf.train.Example`; raises DecodeError."""
    try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        return feature['image'].bytes_list.value[0], feature['label'].int64_list.value[0]
    except (ProtoError, IndexError) as error:
        raise DecodeError('not a tf.train.Example with an image and a label') from error
