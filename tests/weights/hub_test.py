"""The hub, from a cache that the test writes; nothing here reaches for a network."""

import json
from functools import partial

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from se_flax import cli
from se_flax.errors import MissingError, UserError
from se_flax.models import create_model, list_models, registry, timm_architectures
from se_flax.weights import convert, from_hub, read_info

pytestmark = pytest.mark.quick

ARCHITECTURES = timm_architectures()
ID = 'timm/legacy_seresnet18.in1k'
CONFIG = {
    'architecture': 'legacy_seresnet18',
    'pretrained_cfg': {
        **{'input_size': [3, 224, 224], 'crop_pct': 0.875, 'interpolation': 'bicubic'},
        **{'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]},
    },
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)


def test_from_the_cache(weights, assert_equal, tmp_path, monkeypatch):
    make, size = registry._ENTRIES['timm_legacy_seresnet18']
    small = partial(make, stage_sizes=(1, 1), width=16)
    monkeypatch.setitem(registry._ENTRIES, 'timm_legacy_seresnet18', (small, size))
    flat = weights.flat_variables('timm_legacy_seresnet18')
    state = weights.to_torch(weights.resnet_modules((1, 1), 2, style='cadene', se=True), flat)
    model, config = safetensors.numpy.save(state, {'format': 'pt'}), json.dumps(CONFIG).encode()
    weights.hub_cache(tmp_path, ID, model_safetensors=model, config_json=config)
    name, variables = from_hub(ID, tmp_path)
    assert name == 'timm_legacy_seresnet18'
    assert_equal(variables, flat)

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    convert(f'hub:{ID}', None, tmp_path / 'out.safetensors')
    info = read_info(tmp_path / 'out.safetensors')
    assert (info.model, info.lineage, info.num_classes) == (name, 'cadene', 1000)
    assert info.preprocessing[:3] == (224, 256, 'bicubic_antialias')
    np.testing.assert_allclose(info.preprocessing.mean, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(info.preprocessing.std, (58.395, 57.12, 57.375))
    with pytest.raises(UserError, match=f'hub:{ID} contains {name}, not vgg16'):
        convert(f'hub:{ID}', 'vgg16', tmp_path / 'out.safetensors')


def test_without_network_and_cache(tmp_path):
    with pytest.raises(
        MissingError, match=r'of .*in1k is not in the huggingface_hub cache .*hf download'
    ):
        from_hub(ID, tmp_path)


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (RuntimeError('407 Authentication Required'), '407 Authentication Required'),
        (TimeoutError(), 'TimeoutError'),
    ],
)
def test_whatever_a_download_raises_is_a_line(tmp_path, monkeypatch, error, reason):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', refuse)
    with pytest.raises(MissingError, match=rf'cannot be downloaded \({reason}\); on a machine'):
        from_hub(ID, tmp_path)


@pytest.mark.parametrize(
    ('repo_id', 'message'),
    [
        ('timm/legacy_senet15.in1k', 'did you mean timm/legacy_senet154'),
        ('tim/resnet50.a1_in1k', 'did you mean timm/resnet50'),
        ('resnet50', 'timm/resnet50'),
        ('timm/resnet50.a1 in1k', 'is not an id on the hub, such as timm/'),
        ('timm/resnet50/../x', 'unknown weights'),
        ('', 'unknown weights'),
    ],
)
def test_ids_that_are_none(tmp_path, repo_id, message):
    with pytest.raises(UserError, match=message):
        from_hub(repo_id, tmp_path)


@pytest.mark.parametrize(
    'config',
    [
        b'',
        b'[]',
        b'{}',
        json.dumps({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'crop_pct': 0}}).encode(),
        json.dumps({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'std': [0, 0, 0]}}).encode(),
        json.dumps({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'input_size': 3}}).encode(),
    ],
)
def test_a_config_that_is_none(weights, tmp_path, config):
    weights.hub_cache(tmp_path, ID, model_safetensors=b'not read', config_json=config)
    with pytest.raises(UserError, match=r'is not a valid timm config|in the metadata'):
        from_hub(ID, tmp_path)


def test_another_crop_is_told(weights, tmp_path, caplog):
    config = {'pretrained_cfg': CONFIG['pretrained_cfg'] | {'crop_mode': 'squash'}}
    config = json.dumps(config).encode()
    weights.hub_cache(tmp_path, ID, model_safetensors=b'not read', config_json=config)
    with pytest.raises(UserError, match='not a safetensors file'):
        from_hub(ID, tmp_path)
    assert caplog.messages == [
        "timm's crop_mode='squash' is not supported: the center is cut out instead"
    ]


def test_every_id_is_of_a_network_here():
    assert set(ARCHITECTURES.values()) <= set(list_models())


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_timms_own_names_are_known_to_the_hint(architecture, capsys):
    here = ARCHITECTURES[architecture]
    for name in (architecture, f'timm/{architecture}', f'{architecture}.a1_in1k'):
        if name in list_models():
            continue  # an own network of that name
        message = f"unknown model '{name}': timm's {architecture} is {here} here"
        with pytest.raises(UserError) as caught:
            create_model(name)
        assert str(caught.value) == message
        assert cli.main(['info', name]) == 2
        assert capsys.readouterr().err == f'error: {message}\n'
