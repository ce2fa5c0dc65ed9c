"""What holds for every network, whatever its family."""

import pydoc
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import ClosedJaxpr, Literal

import se_flax
from se_flax.errors import UserError
from se_flax.models import create_model, list_models, model_info
from se_flax.models.network import PLACEMENTS, ResidualNetwork
from se_flax.models.variables import variable_shapes
from se_flax.training.optimizer import decays

# One small or shallow member a family. The full ones are counted in counts.csv.
FAMILIES = {
    'se_resnet50': {'stage_sizes': (1, 1, 1, 1)},
    'se_resnext50_32x4d': {'stage_sizes': (1, 1, 1, 1)},
    'senet154': {'stage_sizes': (1, 1, 1, 1)},
    'timm_seresnet50': {'stage_sizes': (1, 1, 1, 1)},
    'timm_legacy_seresnet18': {'stage_sizes': (1, 1, 1, 1)},
    'timm_resnetrs50': {'stage_sizes': (1, 1, 1, 1)},
    'timm_seresnextaa101d_32x8d': {'stage_sizes': (1, 1, 1, 1)},
    'regnet_y_200mf': {'stage_sizes': (1, 1, 1, 2)},
    'se_resnet20_cifar': {'stage_sizes': (1, 1, 1)},
    'se_vgg16': {'width': 16},
    'se_bn_inception': {},
    'se_inception_resnet_v2': {'stage_sizes': (1, 1, 2)},
    'se_mobilenet': {},
    'se_shufflenet': {'stage_sizes': (1, 1, 2)},
    'se_preact_resnet110': {'stage_sizes': (1, 1, 1)},
    'se_preact_resnet164': {'stage_sizes': (1, 1, 1)},
    'se_wrn16_8': {'stage_sizes': (1, 1, 1), 'width': 32},
    'se_shake_shake26_2x96d': {'stage_sizes': (1, 1, 1), 'width': 32},
    'se_shake_even29_2x4x64d': {'stage_sizes': (1, 1, 1), 'width': 32},
    'mobilenet_v3_small': {'stage_sizes': (1, 1, 1, 1, 2)},
    'efficientnet_b0': {'stage_sizes': (1, 1, 1, 1, 1, 1, 2)},
    'efficientnet_v2_s': {'stage_sizes': (1, 1, 1, 1, 1, 2)},
}
# Of alike ones, with the same layers in the same places, one.
ALIKE = ('se_resnext50_32x4d', 'senet154', 'se_resnet20_cifar', 'timm_seresnextaa101d_32x8d')
DISTINCT = [name for name in FAMILIES if name not in ALIKE]
INVERTED = ('mobilenet_v3_small', 'efficientnet_b0', 'efficientnet_v2_s')
RESNETS = [name for name, fields in FAMILIES.items() if fields.get('stage_sizes') == (1, 1, 1, 1)]
SMALLEST = {
    **dict.fromkeys(RESNETS, 3),
    **{'se_vgg16': 32, 'se_bn_inception': 32, 'se_inception_resnet_v2': 75},
}


def family(name, **fields):
    return create_model(name, 10, **FAMILIES[name], **fields)


# Stages that SE can be left out of, for the families with residual units.
STAGES = {
    name: model.stages[: len(model.stage_sizes)]
    for name in DISTINCT
    if isinstance(model := family(name), ResidualNetwork)
}
PAIRS = ('se_resnet20_cifar', 'se_shake_shake26_2x96d')


@pytest.mark.parametrize('name', PAIRS)
def test_a_network_starts_with_the_values_of_its_twin(name):
    """Studies compare such pairs; SE adds arrays and leaves the others as they are."""
    key = jax.random.key(3, impl='rbg')  # compiles faster than the default
    options = {'xla_backend_optimization_level': 0}
    ours, theirs = (
        jax.jit(model.init, compiler_options=options)(key, jnp.zeros((1, 32, 32, 3)))
        for model in (family(name), family(name, se=None))
    )
    ours, theirs = (
        {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(variables)}
        for variables in (ours, theirs)
    )
    assert ours.keys() > theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def image(size, dtype=jnp.float32, channels=3):
    return jax.ShapeDtypeStruct((2, size, size, channels), dtype)


def initialized(model, size, dtype=jnp.float32):
    """The variables without their values."""
    images = image(size, dtype, model.in_channels)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def without_se(names):
    return {k: v for k, v in names.items() if not re.search(r'/se[\d_]*/', k)}


def plain_twin(name):
    """'se_x' to 'x', 'timm_sex' to 'timm_x', 'x' to 'x_no_se'; None if there is no plain one."""
    trunks = {'senet154': 'senet154_trunk'}
    twin = trunks.get(name, re.sub(r'^(timm_)?se_?(?=\w)', r'\1', name))
    twin = f'{name}_no_se' if twin == name else twin
    return twin if twin in list_models() and twin != name else None


def test_help_lists_the_functions_that_make_networks():
    text = pydoc.plain(pydoc.render_doc(se_flax))
    for name in ('create_model', 'fold_batch_norm', 'list_models', 'model_info'):
        assert f'\n    {name}(' in text


# Sections 1.3 and 2 of the fact sheet, from prototxts, timm and pytorchcv.
@pytest.mark.parametrize(
    ('name', 'params'),
    [
        ('resnet50', 25_557_032),
        ('se_resnet50', 28_088_024),
        ('resnet101', 44_549_160),
        ('se_resnet101', 49_326_872),
        ('resnet152', 60_192_808),
        ('se_resnet152', 66_821_848),
        ('se_resnet18', 11_778_592),
        ('resnet20_cifar', 272_474),
        ('resnet110_cifar', 1_730_714),
        ('se_resnet110_cifar', 1_730_714 + 14_238),
        ('resnext50_32x4d', 25_028_904),
        ('se_resnext50_32x4d', 27_559_896),
        ('resnext101_32x4d', 44_177_704),
        ('se_resnext101_32x4d', 48_955_416),
        ('se_resnext101_64x4d', 88_232_984),
        ('senet154', 115_088_984),
        ('vgg16', 138_361_768),
        ('se_vgg16', 138_361_768 + 230_792),
        ('bn_inception', 11_285_224),
        ('se_bn_inception', 11_931_622),
        ('inception_resnet_v2', 55_843_464),
        ('regnet_y_400mf', 4_344_144),  # as torchvision's documentation has them
        ('regnet_y_32gf', 145_046_770),
        ('regnet_y_128gf', 644_812_894),
        ('regnet_x_3_2gf', 15_296_552),
        ('mobilenet', 4_231_976),  # Table 3 has 4.2 and 4.7 M
        ('se_mobilenet', 4_711_720),
        ('shufflenet', 1_865_728),
        ('se_shufflenet', 2_476_144),
        ('preact_resnet110', 1_730_522),
        ('se_preact_resnet110', 1_730_522 + 14_238),
        ('preact_resnet164', 1_703_258),
        ('se_preact_resnet164', 1_703_258 + 202_104),
        ('wrn16_8', 10_961_370),
        ('se_wrn16_8', 10_961_370 + 87_920),
        ('shake_shake26_2x96d', 26_192_922),
        ('se_shake_shake26_2x96d', 26_192_922 + 199_248),
        ('shake_even29_2x4x64d', 34_529_700),
        ('se_shake_even29_2x4x64d', 34_529_700 + 1_043_616),
        # As torchvision's documentation has them.
        ('mobilenet_v3_large', 5_483_032),
        ('mobilenet_v3_small', 2_542_856),
        ('efficientnet_b0', 5_288_548),
        ('efficientnet_b7', 66_347_960),
        ('efficientnet_v2_s', 21_458_488),
        ('efficientnet_v2_l', 118_515_272),
    ],
)
def test_exact_parameter_counts(name, params):
    assert model_info(name).params == params


PUBLISHED = [name for name in list_models() if (p := model_info(name).paper) and p.macs]


@pytest.mark.parametrize('name', PUBLISHED)
def test_multiply_adds_are_the_papers(name):
    info = model_info(name)
    if 'inception_resnet_v2' in name:
        # The authors' variant is unknown; no published layout has its 11.75 G.
        assert info.macs > 1.1 * info.paper.macs
    else:
        # ShuffleNet's 140 M are quoted from its own paper; the network has 137.5 M.
        rel = 0.03 if 'shufflenet' in name else 0.005
        assert info.macs == pytest.approx(info.paper.macs, rel=rel)


@pytest.mark.parametrize(
    ('name', 'params', 'macs'),  # in millions
    [
        # arXiv 1905.02244, Table 3
        ('mobilenet_v3_large', 5.4, 219),
        ('timm_tf_mobilenetv3_large_075', 4.0, 155),
        ('mobilenet_v3_small', 2.5, 56),
        ('timm_tf_mobilenetv3_small_075', 2.0, 44),
        # arXiv 1905.11946, Table 2
        ('efficientnet_b0', 5.3, 390),
        ('efficientnet_b1', 7.8, 700),
        ('efficientnet_b2', 9.2, 1000),
        ('efficientnet_b3', 12, 1800),
        ('efficientnet_b4', 19, 4200),
        ('efficientnet_b5', 30, 9900),
        ('efficientnet_b6', 43, 19000),
        ('efficientnet_b7', 66, 37000),
        # arXiv 2104.00298, Table 7
        ('efficientnet_v2_s', 22, 8800),
        ('efficientnet_v2_m', 54, 24000),
        ('efficientnet_v2_l', 120, 53000),
    ],
)
def test_counts_are_near_those_of_later_papers(name, params, macs):
    info = model_info(name)
    assert info.params == pytest.approx(1e6 * params, rel=0.03)
    assert info.macs == pytest.approx(1e6 * macs, rel=0.06)


TWINS = [name for name in list_models() if plain_twin(name)]


def test_every_network_of_the_paper_has_a_twin():
    plain = {plain_twin(name) for name in TWINS}
    later = re.compile(r'.*regnet|timm_seresnext(26|101d|aa)|timm_resnetrs')
    alone = {name for name in list_models() if name not in TWINS and name not in plain}
    alone = {name for name in alone if not later.match(name)}
    # Of these, torchvision's have twins, which differ by an epsilon or a padding.
    alone -= {name for name in alone if re.match(r'timm_(tf_)?(mobilenetv3|efficientnet)', name)}
    assert alone == {
        'timm_senet154',  # senet154's is the trunk
        'timm_resnext101_32x48d',  # of Table 9, without SE
        'timm_legacy_seresnet18',
        'timm_legacy_seresnet34',
        'timm_legacy_seresnext26_32x4d',
    }


@pytest.mark.parametrize('name', TWINS)
def test_twins_have_equal_fields_but_se(name):
    with_se, plain = create_model(name), create_model(plain_twin(name))
    assert with_se.se
    assert with_se.clone(se=None) == plain


@pytest.mark.parametrize('name', DISTINCT)
def test_se_adds_its_own_parameters_alone(name):
    with_se, plain = (variable_shapes(family(name, **fields)) for fields in ({}, {'se': None}))
    assert without_se(with_se) == plain
    assert len(with_se) > len(plain)


# Of the others, the exact number of parameters is known with SE and without.
@pytest.mark.parametrize(
    ('name', 'blocks'),
    [
        ('timm_resnetrs50', 16),
        ('regnet_y_200mf', 13),
        ('regnet_x_200mf', 0),
        ('se_preact_resnet164', 54),
        ('se_wrn16_8', 6),
        ('se_shake_shake26_2x96d', 24),
        ('se_shake_even29_2x4x64d', 18),
        ('se_inception_resnet_v2', 43),  # 40 units and three modules
        ('mobilenet_v3_large', 8),
        ('mobilenet_v3_small', 9),
        ('efficientnet_b0', 16),
        ('efficientnet_v2_s', 30),
    ],
)
def test_number_of_se_blocks(name, blocks):
    names = variable_shapes(create_model(name))
    assert sum(k.endswith('reduce/kernel') and 'se' in k for k in names) == blocks


@pytest.mark.parametrize('name', DISTINCT)
def test_other_image_sizes_work(name):
    other = 28 if model_info(name).input_size == 32 else 160
    outputs = [
        jax.eval_shape(family(name).init_with_output, jax.random.key(0), image(size))
        for size in (model_info(name).input_size, other)
    ]
    logits, _ = outputs[0]
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert outputs[1] == outputs[0]


@pytest.mark.parametrize('name', FAMILIES)
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name):
    smallest = SMALLEST.get(name, 1)
    initialized(family(name), smallest)
    with pytest.raises(UserError, match=f'at least {smallest} x {smallest}'):
        initialized(family(name), smallest - 1)


@pytest.mark.parametrize('strides', [1, 4])
def test_the_smallest_image_follows_from_the_strides_of_the_stem(strides):
    model = create_model('resnet8_cifar', stem='imagenet', stem_strides=strides)
    initialized(model, strides + 1)
    with pytest.raises(UserError, match=f'at least {strides + 1} x {strides + 1}'):
        initialized(model, strides)


def test_bn_inception_wants_multiples_of_32():
    with pytest.raises(UserError, match='image height=299 is not .* total stride=32; use 288 or'):
        initialized(family('se_bn_inception'), 299)


def test_two_paths_of_a_shortcut_make_an_odd_number_of_channels():
    initialized(family('se_shake_shake26_2x96d').clone(width=17), 32)


@pytest.mark.parametrize('name', FAMILIES)
def test_wrong_images_are_refused(name):
    with pytest.raises(UserError, match='to a float dtype first'):
        initialized(family(name), 96, jnp.uint8)


def small_size(name):
    return 96 if name == 'se_inception_resnet_v2' else 32


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('name', STAGES)
def test_every_residual_network_has_every_placement(name, placement):
    """The same network around it, and one block a unit (two where both branches have one).

    Of the inverted residual blocks here, the second of a stage and V2's first have a shortcut.
    """
    fields = {'se_stages': STAGES[name]}
    standard = variable_shapes(family(name, **fields))
    other = variable_shapes(family(name, placement=placement, **fields))
    assert without_se(other) == without_se(standard)
    per_unit = {k.split('/se/')[0] for k in other if '/se/' in k}
    two_branches = 'shake' in name and placement in ('standard', 'inside_3x3')
    units = {k.split('/')[1] for k in standard if re.search(r'block|mixed', k)}
    if placement == 'identity' and name in INVERTED:
        first = {'stage2_block1'} if name == 'efficientnet_v2_s' else set()
        units = first | {unit for unit in units if unit.endswith('_block2')}
    assert len(per_unit) == len(units) * (2 if two_branches else 1)
    assert {block.split('/')[1] for block in per_unit} == units


@pytest.mark.parametrize('name', STAGES)
def test_every_subset_of_stages_can_have_se(name):
    def stages(names):
        if 'inception' in name:
            of = {'mixed_5b': 5, 'block35': 5, 'mixed_6a': 6, 'block17': 6, 'mixed_7a': 7}
            units = [k.split('/')[1] for k in names if '/se/' in k]
            return {of.get(u, of.get(u.split('_')[0], 7)) for u in units}
        return {int(m[1]) for k in names if (m := re.search(r'stage(\d)\S*/se/', k))}

    every = STAGES[name]
    for chosen in (every[1:], (every[0], every[-1])):
        assert stages(variable_shapes(family(name, se_stages=chosen))) == set(chosen)
    with pytest.raises(UserError, match='unknown stage in se_stages 1'):
        family(name, se_stages=(1,))
    with pytest.raises(UserError, match='did you mean standard'):
        family(name, placement='standart')


def random_variables(model, size, dtype=np.float64):
    """Parameters and statistics by NumPy, none of them at its initial value."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if path[-1].key == 'kernel':
            fan_in = np.prod(shape.shape[:-1])
            return rng.normal(0, np.sqrt(1 / fan_in), shape.shape).astype(dtype)
        center = 1.0 if path[-1].key in ('scale', 'var') else 0.0
        return rng.normal(center, 0.1, shape.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, initialized(model, size))


GATED = ('se_resnet50', 'se_bn_inception', 'se_mobilenet', 'se_shufflenet', 'se_preact_resnet164')
GATED += ('mobilenet_v3_small', 'efficientnet_v2_s', 'regnet_y_200mf', 'se_shake_shake26_2x96d')


@pytest.mark.parametrize(
    'name', [*GATED, pytest.param('se_inception_resnet_v2', marks=pytest.mark.slow)]
)
def test_open_gates_make_the_plain_network(name):
    """With W2 = 0 each gate is sigmoid(b2): 1 for a large b2."""
    size = small_size(name)
    model = family(name, se={'use_bias': True}, dtype=jnp.float64)

    def open_gate(path, leaf):
        if re.search(r'/se[\d_]*/expand/kernel', path):
            return 0 * leaf
        return 0 * leaf + 50 if re.search(r'/se[\d_]*/expand/bias', path) else leaf

    x = np.random.default_rng(1).normal(size=(1, size, size, 3))
    plain = family(name, se=None, dtype=jnp.float64)
    with jax.enable_x64(True):
        variables = random_variables(model, size)
        flat = flatten_dict(variables, sep='/')
        opened = {path: open_gate(path, leaf) for path, leaf in flat.items()}
        forward = jax.jit(model.apply)
        shut, got = (forward(each, x) for each in (variables, unflatten_dict(opened, sep='/')))
        want = jax.jit(plain.apply)(unflatten_dict(without_se(flat), sep='/'), x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.abs(want).max())
    assert np.abs(shut - got).max() > 1e-3 * np.abs(want).max()


def distribution(x, fan_in):
    """Names the distribution of initial values: a constant, or normal with a standard deviation."""
    x = np.asarray(x, np.float64).ravel()
    if (x == x[0]).all():
        return f'{x[0]:g}'
    shape = 'truncated normal' if np.abs(x).max() < 2.3 * x.std() and x.size > 1000 else 'normal'
    error = 5 / np.sqrt(2 * x.size)  # five standard errors of a standard deviation
    for numerator in (2, 1):
        if abs(x.std() / np.sqrt(numerator / fan_in) - 1) < error:
            return f'{shape}, std sqrt({numerator}/{fan_in})'
    return f'{shape}, std {x.std():.3g}'


# What takes long to compile, or has another's layers, is marked slow.
LONG = ('se_vgg16', 'se_bn_inception', 'se_inception_resnet_v2', 'se_mobilenet', 'se_shufflenet')
LONG += ('timm_resnetrs50', 'timm_seresnet50', 'timm_legacy_seresnet18', 'se_preact_resnet110')
LONG += ('se_wrn16_8', 'se_shake_even29_2x4x64d', *INVERTED)


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in DISTINCT],
)
def test_initial_values_and_weight_decay(name, golden):
    """Line by line what each parameter starts from, and whether it decays."""
    key = jax.random.key(0, impl='rbg')  # compiles faster than the default
    params = jax.jit(family(name).init)(key, np.zeros((1, 96, 96, 3), 'f'))['params']
    lines = []
    marks = jax.tree.leaves(decays(params))
    for (path, x), decay in zip(jax.tree_util.tree_leaves_with_path(params), marks, strict=True):
        key = jax.tree_util.keystr(path, simple=True, separator='/')
        start = distribution(x, int(np.prod(x.shape[:-1])))
        shape = 'x'.join(map(str, x.shape))
        lines.append(f'{key}  {shape}  {start}  {"decays" if decay else "does not decay"}')
    golden(f'models/{name}.txt', '\n'.join(lines) + '\n')


# bfloat16. A cast to float32 is fused into the reduction that follows it, so statistics and means
# may start from such a map; it must not reach a convolution, a product or a pool, or be cast back.


def float32_maps(closed, images):
    """Returns the names of operations that make, or take, a feature map in float32.

    A feature map is what depends on the images, number `images` of the arguments, and holds more
    values than a batch of the widest features.
    """
    limit, found = 2 * 4096, []

    def is_map(v):
        return v.aval.ndim >= 3 and v.aval.size > limit

    def walk(jaxpr, wide_in, from_images_in):
        kinds = zip(jaxpr.invars, wide_in, from_images_in, strict=True)
        wide, from_images = set(), set()
        for v, is_wide, is_from_images in kinds:
            wide |= {v} if is_wide else set()
            from_images |= {v} if is_from_images else set()

        def marks(variables, of):
            return [not isinstance(v, Literal) and v in of for v in variables]

        for eqn in jaxpr.eqns:
            if not any(marks(eqn.invars, from_images)):
                continue
            from_images.update(eqn.outvars)
            leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_closed)
            inner = [leaf.jaxpr for leaf in leaves if is_closed(leaf)]
            for sub in inner:
                args = eqn.invars[len(eqn.invars) - len(sub.invars) :]  # `cond` has an index first
                outs = walk(sub, marks(args, wide), marks(args, from_images))
                wide.update(v for v, out in zip(eqn.outvars, outs, strict=True) if out)
            if inner:
                continue
            for out in filter(is_map, eqn.outvars):
                if out.aval.dtype == jnp.float32:
                    wide.add(out)
                    if eqn.primitive.name in HEAVY:
                        found.append(eqn.primitive.name)
                elif any(marks(eqn.invars, wide)):
                    found.append(eqn.primitive.name)
        return marks(jaxpr.outvars, wide)

    walk(
        closed.jaxpr,
        [False] * len(closed.jaxpr.invars),
        [i == images for i in range(len(closed.jaxpr.invars))],
    )
    return found


HEAVY = {'conv_general_dilated', 'dot_general', 'reduce_window_sum', 'reduce_window_max'}


def is_closed(leaf):
    return isinstance(leaf, ClosedJaxpr)


@cache
def abstract_variables(name, size):
    return initialized(family(name), size)


def feature_maps_in_float32(name, size, train, **fields):
    model = family(name, **fields)
    rngs = dict.fromkeys(('dropout', 'shake'), jax.random.key(0)) if train else None
    variables = abstract_variables(name, size)  # float32 whatever the dtype of the maps
    apply = partial(
        model.apply, train=train, rngs=rngs, mutable=['batch_stats'] if train else False
    )
    closed = jax.make_jaxpr(apply)(variables, image(size, model.dtype))
    (logits, *_) = closed.out_avals
    assert logits.dtype == jnp.float32
    return float32_maps(closed, images=len(closed.jaxpr.invars) - 1)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
def test_feature_maps_are_bfloat16_throughout(name, train):
    size = 96 if model_info(name).input_size != 32 else 32
    assert feature_maps_in_float32(name, size, train, dtype=jnp.bfloat16) == []


@pytest.mark.parametrize('name', ['se_resnet50', 'mobilenet_v3_small'])
def test_feature_maps_in_float32_are_found(name):
    assert 'conv_general_dilated' in feature_maps_in_float32(name, 96, train=True)


@pytest.mark.parametrize('wrong', [8.0, True])
def test_a_refused_number_does_not_replace_the_equal_one(wrong):
    """Networks share equal partials, but 8.0 is not the 8 that comes after it."""
    with pytest.raises(UserError, match=f'reduction={wrong} must be an integer'):
        initialized(create_model('se_resnet8_cifar', se={'reduction': wrong}), 8)
    initialized(create_model('se_resnet8_cifar', se={'reduction': int(wrong)}), 8)


class OwnGate(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(x.mean((1, 2), keepdims=True)))


@pytest.mark.parametrize('name', ['se_resnet20_cifar', 'se_resnet50', 'se_preact_resnet110'])
def test_a_users_own_block_takes_maps(name):
    params = initialized(family(name, se=OwnGate), 32)['params']
    assert 'Dense_0' in params['stage2_block1']['se']
