"""What importing costs and needs, what is installed, annotations, docstrings that rot."""

import configparser
import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
import typing

import pytest
from flax import linen as nn

import se_flax

ROOT = pathlib.Path(__file__).parents[1]
TRAINING = {
    *('optax', 'orbax', 'tensorflow_datasets', 'array_record', 'grain', 'clu', 'ml_collections'),
    *('simplejpeg', 'cv2', 'rich', 'matplotlib', 'tensorboard', 'tensorflow', 'torch'),
    *('safetensors', 'huggingface_hub'),
}

BEYOND = TRAINING - {'optax', 'rich'}  # rich is Flax's own


def python(code):
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def heavy_modules(code):
    """What code imports of TRAINING, beyond what Flax itself does (rich)."""
    code = f'import flax.linen, sys\nflax = {{*sys.modules}}\n{code}\nnew = {{*sys.modules}} - flax'
    result = python(f'{code}\nprint(*{{name.split(".")[0] for name in new}})')
    assert result.returncode == 0, result.stderr
    return TRAINING & set(result.stdout.split())


def test_import_is_light():
    assert heavy_modules('import se_flax') == set()


def test_the_check_of_a_light_import_can_fail():
    assert 'ml_collections' in heavy_modules('import se_flax, se_flax.training.config')


BLOCK = """
import sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked)
import {module}
"""


def test_networks_and_the_step_need_only_jax_flax_and_optax():
    modules = 'se_flax.models, se_flax.nn, se_flax.nnx, se_flax.training.step'
    result = python(BLOCK.format(blocked=BEYOND, module=modules))
    assert result.returncode == 0, result.stderr


def test_the_block_can_fail():
    result = python(BLOCK.format(blocked=BEYOND, module='se_flax.training.config'))
    assert 'ModuleNotFoundError: ml_collections' in result.stderr


EXTRAS = {  # by the package without which importing the module fails
    ('google.protobuf', 'se_flax.weights'): 'weights',
    ('safetensors', 'se_flax.weights'): 'weights',
    ('grain', 'se_flax.data'): 'train',
    ('flatbuffers', 'se_flax.export'): 'export',
}
IMPORT = f"""
import importlib, sys
import se_flax

for package, module in {[*EXTRAS]}:
    sys.modules[package] = None
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(error)
    del sys.modules[package]
"""


def test_an_import_names_the_extra_that_it_needs():
    said = python(IMPORT).stdout.splitlines()
    for line, ((package, _), extra) in zip(said, EXTRAS.items(), strict=True):
        assert line.startswith(f'this needs {package}')
        assert line.endswith(f"; pip install 'se_flax[{extra}]'")


def test_the_command_names_the_extra_that_it_needs():
    code = "import runpy, sys; sys.modules['safetensors'] = None; "
    code += "sys.argv[1:] = ['convert', 'w.pth', '--out', 'w.safetensors']; "
    result = python(f"{code}runpy.run_module('se_flax.cli', run_name='__main__')")
    said = "error: this needs safetensors; pip install 'se_flax[weights]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, '', said)


def test_nothing_on_the_training_path_imports_tensorflow_or_torch():
    assert not heavy_modules('import se_flax.training.run, se_flax.cli') & {'tensorflow', 'torch'}


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path):
    """Python takes a folder without `__init__.py`, such as the clone, for a package, too."""
    (tmp_path / 'se_flax' / 'se_flax').mkdir(parents=True)
    script = tmp_path / 'script.py'
    script.write_text('from se_flax import create_model\n')
    for command in ([str(script)], ['-c', script.read_text()]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_every_file_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    installed = {
        path
        for package, patterns in config['options.package_data'].items()
        for pattern in patterns.split()
        for path in (ROOT / package.replace('.', '/')).glob(pattern)
    }
    files = {path for path in (ROOT / 'se_flax').rglob('*') if path.is_file()}
    recipes = {path for path in installed if path.parent.name == 'configs'}
    assert recipes == {*(ROOT / 'se_flax/configs').glob('*.py')} != set()
    assert installed - recipes == {path for path in files if path.suffix not in ('.py', '.pyc')}
    assert ROOT / 'se_flax' / 'py.typed' in installed


def public_functions(of, module):
    """Yields what users may call of a module, and of the classes in it."""
    for name, value in vars(of).items():
        value = getattr(value, 'fget', getattr(value, '__func__', value))  # of a property
        if name[0] == '_' and name != '__call__' or not callable(value):
            continue
        if (getattr(value, '__module__', None) or '').startswith(module):
            if not inspect.isclass(value):
                yield value
            elif inspect.ismodule(of):
                yield from public_functions(value, module)


def test_public_functions_are_annotated():
    """So that a type checker knows them; what it knows is checked by mypy."""
    bare = set()
    for info in pkgutil.walk_packages(se_flax.__path__, 'se_flax.'):
        if info.name.startswith('se_flax.models.'):
            continue  # their public names are those of `se_flax.models`
        for function in public_functions(importlib.import_module(info.name), info.name):
            for seen in typing.get_overloads(function) or [function]:
                signature = inspect.signature(seen)
                kinds = {name: p.annotation for name, p in signature.parameters.items()}
                kinds |= {'return': signature.return_annotation, 'self': None, 'cls': None}
                if inspect.Signature.empty in kinds.values():
                    bare.add(f'{function.__module__}.{function.__qualname__}')
    assert not bare


def documented_classes():
    for info in pkgutil.walk_packages(se_flax.__path__, 'se_flax.'):
        module = importlib.import_module(info.name)
        for name, cls in inspect.getmembers(module, inspect.isclass):
            own = cls.__module__ == info.name and dataclasses.is_dataclass(cls)
            if own and 'Attributes:' in cls.__doc__:
                yield pytest.param(cls, id=f'{info.name}.{name}')


@pytest.mark.parametrize('cls', list(documented_classes()))
def test_attributes_in_the_docstring_are_the_classs_own_fields_in_order(cls):
    block = inspect.getdoc(cls).split('Attributes:\n')[1].split('\n\n')[0]
    names = re.findall(r'^    (\w[\w, ]*):', block, re.MULTILINE)
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    inherited = {f.name for base in bases for f in dataclasses.fields(base)}
    inherited |= {'parent', 'name'} if issubclass(cls, nn.Module) else set()
    fields = [f.name for f in dataclasses.fields(cls) if f.name not in inherited]
    assert ', '.join(names).split(', ') == fields
