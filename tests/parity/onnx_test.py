"""Our ONNX graph beside the one that `torch.onnx` makes of timm's network."""

import collections
import io

import jax
import jax.numpy as jnp
import pytest

from se_flax import create_model
from se_flax.export import export_onnx

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')


def kinds(exported):
    return collections.Counter(node.op_type for node in exported.graph.node)


def test_parity_no_more_nodes_than_timms_export():
    model = create_model('timm_seresnet50', stage_sizes=(1, 1, 1, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    pixels = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    ours = kinds(export_onnx(model, variables, 64, nchw=True, **pixels))

    network = timm.create_model('seresnet50', layers=(1, 1, 1, 1)).eval()
    program = torch.onnx.export(network, (torch.zeros(1, 3, 64, 64),), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    theirs = kinds(onnx.load_model_from_string(file.getvalue()))
    for kind in ('Conv', 'Relu', 'Sigmoid', 'Mul', 'MaxPool', 'Gemm'):
        assert ours[kind] == theirs[kind], kind
    assert not ours['BatchNormalization']
    assert not ours['Transpose']
    assert ours.total() <= theirs.total()
