"""A run whose workdir is in a bucket: `gs://`, served by an emulator on this machine."""

import json
import logging
import sys

import pytest
from etils import epath

from se_flax.training.metrics_log import read_rows

from ..emulator import BUCKET
from .metrics_log_test import untimed

RUN = 'runs/a'
WORKDIR = f'gs://{BUCKET}/{RUN}'


@pytest.mark.faults
def test_killed_and_damaged_it_goes_on_exactly(bucket, start_train_main, reference):
    seldom = '--config.checkpoint_every_steps=8'  # each is hundreds of requests
    # With step 17 the checkpoint of 16 is there.
    process = start_train_main(WORKDIR, seldom, '--config.async_checkpoints=false')
    for line in process.stdout:
        if line.startswith('step 17/'):
            process.kill()
    process.communicate()

    # What the bucket's owner alone could do: a byte of the newest checkpoint is another.
    newest = f'{RUN}/checkpoints/16'
    files = json.loads(bucket.get_file(BUCKET, f'{newest}/manifest.json'))['files']
    damaged = max(files, key=lambda name: files[name]['size'])
    content = bytearray(bucket.get_file(BUCKET, f'{newest}/{damaged}'))
    content[len(content) // 2] ^= 1
    about = bucket.get_file_obj(BUCKET, f'{newest}/{damaged}')
    about = {k: v for k, v in about.items() if k not in ('crc32c', 'md5Hash')}
    bucket.create_file(BUCKET, f'{newest}/{damaged}', bytes(content), about)

    process = start_train_main(WORKDIR, seldom, '--config.profile_steps=10,11')
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f'{damaged} has changed (SHA-256)' in output
    assert 'resuming from step 8' in output
    rows = map(json.loads, bucket.get_file(BUCKET, f'{RUN}/metrics.jsonl').splitlines())
    assert untimed(rows) == untimed(read_rows(reference / 'metrics.jsonl'))
    assert f'see {WORKDIR}/ for ' in output
    for name in ('curves.png', 'DONE', 'checkpoints/damaged-16-0/manifest.json'):
        assert bucket.get_file(BUCKET, f'{RUN}/{name}')
    # Of steps 9 to 16, whose seconds came with their checkpoint.
    assert json.loads(bucket.get_file(BUCKET, f'{RUN}/DONE'))['goodput']['lost'] > 0
    traces, _ = bucket.get_file_list(BUCKET, f'{RUN}/profile/process0/plugins/profile/')
    assert any(file['name'].endswith('.xplane.pb') for file in traces)


def test_an_address_of_no_bucket_is_refused(train_main, capsys):
    assert train_main('gz://bucket/run') == 2
    assert "unknown URL scheme 'gz': did you mean gs" in capsys.readouterr().err


def test_a_bucket_out_of_reach_is_told_in_a_line(train_main, capsys, caplog, monkeypatch):
    """As gcsfs does it after half a minute of trying: it logs a traceback, then raises."""

    def exists(path):
        logging.getLogger('gcsfs').error('out of retries', exc_info=OSError())
        raise OSError('Cannot connect\nto host')

    monkeypatch.setattr(type(epath.Path(WORKDIR)), 'exists', exists)
    assert train_main(WORKDIR) == 2
    assert capsys.readouterr().err == f'error: cannot reach {WORKDIR}: Cannot connect to host\n'
    assert caplog.text == ''


def test_what_opens_a_bucket_is_named_where_it_is_missing(train_main, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)
    assert train_main('s3://bucket/run') == 2
    assert 'pip install s3fs' in capsys.readouterr().err
