from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.models import create_model, model_info
from se_flax.models.complexity import count
from se_flax.models.network import PLACEMENTS
from se_flax.nn import SqueezeExcite

small = partial(create_model, 'se_resnet50', 10, stage_sizes=(1, 1, 1, 1), width=16)
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype('f')


# Sections 1.3, 2.1 of the fact sheet: the released prototxts and Table 10, computed exactly.
@pytest.mark.parametrize(
    ('fields', 'params'),
    [
        ({'se': {'use_bias': False}}, 28_071_976),
        ({'se': {'use_bias': False, 'reduction': 2}}, 45_676_584),
        ({'se': {'reduction': 4}}, 35_635_688),
        ({'se': {'reduction': 32}}, 26_830_080),
        ({'se': {'use_bias': False}, 'se_stages': (2,)}, 25_581_608),
        ({'se': {'use_bias': False}, 'se_stages': (3,)}, 25_688_104),
        ({'se': {'use_bias': False}, 'se_stages': (4,)}, 26_343_464),
        ({'se': {'use_bias': False}, 'placement': 'inside_3x3'}, 25_714_216),
    ],
)
def test_exact_parameter_counts_of_variants(fields, params):
    assert count(create_model('se_resnet50', **fields), 32).params == params


def test_multiply_adds_are_the_papers():
    assert model_info('resnet50').macs == pytest.approx(3.858e9, rel=1e-4)
    assert model_info('se_resnet50').macs == pytest.approx(3.8605e9, rel=1e-4)
    assert model_info('se_resnet152').macs == pytest.approx(11.289e9, rel=1e-4)
    assert model_info('senet154').macs == pytest.approx(20.688e9, rel=1e-4)
    no_squeeze = create_model('se_resnet50', se={'squeeze': None})
    assert count(no_squeeze, 224).macs == pytest.approx(4.27e9, rel=1e-3)  # Table 16
    inside = create_model('se_resnet50', placement='inside_3x3')
    assert count(inside, 224).macs == pytest.approx(3.86e9, rel=2e-3)  # Table 15


@pytest.mark.parametrize('excite', ['tanh', 'relu'])
def test_a_branch_that_could_never_learn_is_refused(excite):
    with pytest.raises(UserError, match='no gradient; use zero_init=False'):
        small(zero_init=True, se={'excite': excite})
    model = small(zero_init=False, se={'excite': excite})
    with pytest.raises(UserError, match='zero_init=True'):
        jax.eval_shape(lambda: model.clone(zero_init=True))  # while tracing, too
    small(zero_init=True, se={'excite': excite}, placement='pre')  # its map is not 0
    small(zero_init=True, se={'excite': excite, 'excite_bias': 2})  # its gates are open
    small(zero_init=True)


def forward(model, variables=None, images=IMAGES, **kwargs):
    variables = variables or jax.jit(model.init)(jax.random.key(0), images)
    return variables, jax.jit(partial(model.apply, **kwargs))(variables, images)


def numpy_unit(params, x, placement):
    """A stride-1 bottleneck of 1x1 maps, BatchNorm an identity: five equations of Figure 5."""

    def se(site, v):
        if site != placement:
            return v
        hidden = np.maximum(v @ params['se']['reduce']['kernel'], 0)
        return v / (1 + np.exp(-(hidden @ params['se']['expand']['kernel'])))

    def conv(i, v):
        k = params[f'conv{i}']['kernel']
        return v @ k[k.shape[0] // 2, k.shape[1] // 2]

    y = np.maximum(conv(1, se('pre', x)), 0)
    y = se('inside_3x3', np.maximum(conv(2, y), 0))
    y = se('standard', conv(3, y))
    return se('post', np.maximum(y + se('identity', x), 0))


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_placements_are_figure_5(placement):
    from se_flax.models.network import Layers
    from se_flax.models.resnet import Bottleneck
    from se_flax.nn import BatchNorm, Conv

    x = np.random.default_rng(0).normal(size=(4, 1, 1, 64))
    conv = partial(Conv, dtype=jnp.float64)
    norm = partial(BatchNorm, use_running_average=True, epsilon=0, dtype=jnp.float64)
    with jax.enable_x64(True):
        unit = Bottleneck(
            filters=16,
            strides=1,
            layers=Layers(conv, norm, norm, partial(SqueezeExcite, 4), placement),
            stride_in='1x1',
            groups=1,
            group_width=64,
            projection_size=1,
            last_scale_init=jax.nn.initializers.ones,
        )
        variables = unit.init(jax.random.key(0), x)
        got = unit.apply(variables, x)
    want = numpy_unit(jax.tree.map(np.asarray, variables['params']), x, placement)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_feature_sizes_follow_the_paper():
    """112, 56, 56, 28, 14, 7 at 224 and 160, 80, 80, 40, 20, 10 at 320."""
    for size, want in ((224, [112, 56, 28, 14, 7]), (320, [160, 80, 40, 20, 10])):
        x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        model = small()
        call = partial(model.init_with_output, capture_intermediates=True, mutable=True)
        _, variables = jax.eval_shape(call, jax.random.key(0), x)
        outputs = variables['intermediates']
        stem = outputs['norm_stem']['__call__'][0].shape[1]
        stages = [outputs[f'stage{s}_block1']['__call__'][0].shape[1] for s in (2, 3, 4, 5)]
        assert [stem, *stages] == want


def test_lineage_fields_change_where_the_map_shrinks():
    variables, caffe = forward(small())
    for fields in ({'stride_in': '3x3'}, {'pool': 'padded'}):
        _, other = forward(small(**fields), variables)
        assert other.shape == caffe.shape
        assert np.abs(other - caffe).max() > 1e-3


def test_zero_init_starts_each_unit_as_its_shortcut():
    key = jax.random.key(0, impl='rbg')  # compiles faster than the default
    variables = jax.jit(small(zero_init=True).init)(key, IMAGES)
    scales = [u['norm3']['scale'] for k, u in variables['params'].items() if 'block' in k]
    assert len(scales) == 4
    assert not np.any(scales[0])


def test_bfloat16_maps_give_float32_logits_near_float32():
    variables, want = forward(small())
    _, got = forward(small(dtype=jnp.bfloat16), variables, IMAGES.astype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    # bfloat16 has 8 bits: rounding of 0.4 % a layer, of a dozen.
    np.testing.assert_allclose(got, want, rtol=0, atol=0.1 * np.abs(want).max())


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((1, 32, 32, 1), 'f'), r'\(1, 32, 32, 1\); this network takes \[B, H, W, 3\]'),
        (np.zeros((32, 32, 3), 'f'), 'this network takes'),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        small().init(jax.random.key(0), images)


@pytest.mark.parametrize(
    ('name', 'fields', 'message'),
    [
        ('seresnet50', {}, "timm's seresnet50 is timm_seresnet50 here"),
        ('se_resnet50', {'reduction': 8}, "unknown field of se_resnet50 'reduction'"),
        ('se_resnet50', {'se': {'reductions': 8}}, 'did you mean reduction'),
    ],
)
def test_wrong_names_get_the_nearest_ones(name, fields, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **fields)
