"""Reads a file whole, or says why not; tells by its content, not its name, what a file is."""

import pathlib
import re
import zipfile

from se_flax.errors import MissingError, UserError

TAKE = 'which is not read here; take the PyTorch or safetensors file of the same weights'
# How files begin that are no weights, or weights of other libraries, and what they are.
FOREIGN = [
    (re.compile(begin, re.DOTALL), what)
    for begin, what in (
        (
            rb'(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|\?xml)',
            'a web page, as of a login or an error; download the file itself',
        ),
        (
            rb'version https://git-lfs',
            'a Git LFS pointer to a file that was not fetched; run: git lfs pull',
        ),
        (
            rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!',
            'a compressed file; unpack it first',
        ),
        (rb'.{257}ustar', 'a tar archive; unpack it first'),
        (rb'\x89HDF', f'HDF5, as Keras writes it, {TAKE}'),
        (rb'\x93NUMPY', f'an array of NumPy, {TAKE}'),
        (rb'\x08\x01\x12|\n[\x02-\x7f]\n', f'a graph of TensorFlow, {TAKE}'),
        (rb'.{4}TFL3', f'TensorFlow Lite, {TAKE}'),
        (rb'\x08[\x02-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]', f'ONNX, {TAKE}'),
    )
]
# Names in a zip archive, the same.
FOREIGN_ZIPS = {
    r'.*/constants\.pkl': 'a TorchScript program; save the state_dict() of the model alone',
    r'.*\.npy': f'arrays of NumPy, {TAKE}',
    r'model\.weights\.h5': f'a model of Keras, {TAKE}',
}
TORCH_PICKLE = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # of torch.save before 2020
MAX_HEADER = 100_000_000  # bytes, of safetensors


def kind_of(path: pathlib.Path) -> str:
    """Returns 'pth', 'safetensors', 'caffemodel', or 'index' for that of shards.

    Raises MissingError where there is no file, and UserError for any other file; it names what the
    file is, if it is known.
    """
    check_file(path)
    try:
        with path.open('rb') as file:
            begin = file.read(512)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    if not begin:
        raise UserError(f'{path} is empty; fetch it again')
    if _has_header(begin):
        return 'safetensors'
    if what := foreign(begin) or _foreign_zip(path, begin):
        raise UserError(f'{path} is no weights file: {what}')
    if begin.startswith((b'PK\x03\x04', TORCH_PICKLE)):
        return 'pth'
    if begin.startswith(b'\x80'):
        raise UserError(f'{path} is a pickle, which is code to run, and not one of torch.save')
    if begin.lstrip().startswith(b'{'):
        return 'index'
    if begin.startswith((b'\n', b'\x12', b'\x1a', b'\xa2\x06')):  # of its protobuf message
        return 'caffemodel'
    raise UserError(
        f'unknown kind of weights file: {path} begins with {begin[:8]!r}; PyTorch, safetensors and '
        'caffemodel files are read'
    )


def foreign(begin: bytes) -> str:
    """Says what a file that begins so is; '' where it may be weights."""
    if _has_header(begin):  # whose size may look like anything
        return ''
    return next((f'it is {what}' for pattern, what in FOREIGN if pattern.match(begin)), '')


def _has_header(begin: bytes) -> bool:
    """Tells whether a file begins as safetensors do: with the size of a header in JSON, and it."""
    return begin[8:9] == b'{' and int.from_bytes(begin[:8], 'little') <= MAX_HEADER


def _foreign_zip(path: pathlib.Path, begin: bytes) -> str:
    if not begin.startswith(b'PK'):
        return ''
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception:  # a damaged archive can raise any; PyTorch then says what is wrong
        return ''
    for pattern, what in FOREIGN_ZIPS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return f'it is {what}'
    if any(name.endswith('/data.pkl') for name in names):
        return ''
    return f'it is a zip archive of {", ".join(names[:3]) or "nothing"}; unpack it first'


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the bytes of a file; MissingError, which names its neighbours, if there is none."""
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None


def check_file(path: pathlib.Path) -> None:
    """Raises MissingError, which names files of the same kind there, unless `path` is a file."""
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob(f'*{path.suffix}')) if p.is_file()][:5]
        raise MissingError(f'no file {path}; there is {", ".join(near) or "none of its kind"}')
