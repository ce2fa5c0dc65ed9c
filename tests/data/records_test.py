import concurrent.futures
import pickle
import resource
import struct

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from se_flax.data.decode import DecodeError
from se_flax.data.records import TFRecords, open_records, parse_example
from se_flax.errors import UserError

pytestmark = pytest.mark.quick

RECORDS = [bytes([i]) * (3 * i) for i in range(40)]  # the first is empty


@pytest.fixture(params=['tfrecord', 'array_record'])
def shards(request, tmp_path, write_tfrecord):
    """RECORDS in four files, one of them empty."""
    paths = [tmp_path / f'{i}' for i in range(4)]
    for path, part in zip(paths, (RECORDS[:9], [], RECORDS[9:10], RECORDS[10:]), strict=True):
        if request.param == 'tfrecord':
            write_tfrecord(path, part)
        else:
            writer = ArrayRecordWriter(str(path), 'group_size:1')
            for record in part:
                writer.write(record)
            writer.close()
    return paths, request.param


def test_both_formats_give_the_records(shards):
    records = open_records(*shards)
    assert [records[i] for i in range(len(records))] == RECORDS


def test_any_thread_may_read(shards):
    records = open_records(*shards)
    order = [*range(40), *reversed(range(40))] * 20
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.__getitem__, order)) == [RECORDS[i] for i in order]


def test_a_worker_process_gets_a_copy(shards):
    records = open_records(*shards)
    assert records[13] == RECORDS[13]  # opens lazily opened files
    assert pickle.loads(pickle.dumps(records))[39] == RECORDS[39]


def test_a_cut_shard_is_named(shards, tmp_path):
    paths, file_format = shards
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match='truncated'):
        open_records(paths, file_format)


@given(st.binary(min_size=1, max_size=40))
@settings(deadline=None)
def test_noise_is_no_tfrecord(tmp_path_factory, data):
    if len(data) >= 8 and struct.unpack('<Q', data[:8])[0] + 16 == len(data):
        return
    path = tmp_path_factory.getbasetemp() / 'noise'
    path.write_bytes(data)
    with pytest.raises(UserError, match='noise is truncated or not a TFRecord file: its record 0'):
        TFRecords([path])


def test_unknown_format():
    with pytest.raises(UserError, match="stored as 'riegeli'; se_flax reads array_record and tf"):
        open_records(['x'], 'riegeli')


def example(**features):
    message = tf_example_pb2.Example()
    for key, value in features.items():
        feature = message.features.feature[key]
        kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        kind.value.append(value)
    return message.SerializeToString()


def test_parse_example():
    assert parse_example(example(image=b'abc', label=7, file_name=b'x')) == (b'abc', 7)


@pytest.mark.parametrize(
    'record',
    [example(image=b'abc'), example(label=1), example(image=3, label=1), b'', b'\xff\xff\xff'],
    ids=['no label', 'no image', 'image a number', 'empty', 'no protobuf'],  # bytes vary in order
)
def test_parse_refuses(record):
    with pytest.raises(DecodeError, match='not a tf.train.Example'):
        parse_example(record)


@pytest.mark.parametrize(('hard', 'raised'), [(resource.RLIM_INFINITY, 1026), (1025, 1025)])
def test_as_many_files_are_opened_as_the_system_allows(tmp_path, monkeypatch, hard, raised):
    path, limits = tmp_path / 'shard', []
    ArrayRecordWriter(str(path), 'group_size:1').close()
    monkeypatch.setattr(resource, 'getrlimit', lambda which: (1024, hard))
    monkeypatch.setattr(resource, 'setrlimit', lambda which, limit: limits.append(limit))
    open_records([path], 'array_record')
    assert limits == [(raised, hard)]
