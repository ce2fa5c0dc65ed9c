"""Google Cloud Storage on this machine, as far as gcsfs, tensorstore and ArrayRecord use it."""

import contextlib
import functools
import socket

import pytest
from etils.epath import backend

BUCKET = 'bucket'


@contextlib.contextmanager
def emulated_bucket(monkeypatch, environ):
    """Yields what stores an empty bucket, which this process and those with `environ` find."""
    server_module = pytest.importorskip('gcp_storage_emulator.server')
    objects = pytest.importorskip('gcp_storage_emulator.handlers.objects')
    file_system = pytest.importorskip('gcsfs').GCSFileSystem
    for _, methods in server_module.HANDLERS:
        for verb, handler in methods.items():
            if handler in (objects.get, objects.download):
                monkeypatch.setitem(methods, verb, functools.partial(_as_google, handler))
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    server = server_module.create_server('localhost', port, in_memory=True, default_bucket=BUCKET)
    server.start()
    address = f'http://localhost:{port}'
    variables = {
        'STORAGE_EMULATOR_HOST': address,  # of gcsfs
        'TENSORSTORE_GCS_HTTP_URL': address,
        'CLOUD_STORAGE_EMULATOR_ENDPOINT': address,  # of ArrayRecord
        'NO_GCE_CHECK': 'true',  # an account is not looked for
    }
    for name, value in variables.items():
        monkeypatch.setitem(environ, name, value)
        monkeypatch.setenv(name, value)
    file_system.clear_instance_cache()  # it keeps the address of an earlier test
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield server._storage
    finally:
        server.stop()


def _as_google(handler, request, response, storage, *args, **kwargs):
    """Answers a request for the last bytes, and names the version; the emulator alone does not."""
    names = request.params['bucket_name'], request.params['object_id']
    last = (request.get_header('range') or '').partition('bytes=-')[2]
    if last:
        start = max(0, len(storage.get_file(*names)) - int(last))
        request._request_handler.headers.replace_header('range', f'bytes={start}-')
    handler(request, response, storage, *args, **kwargs)
    if response.status in (200, 206):
        response['x-goog-generation'] = storage.get_file_obj(*names)['generation']
