"""A traced network as an ONNX graph whose maps are `[B, C, H, W]` from the first layer to the last.

The weights of a network are constants of its jaxpr. What depends on them alone is computed here;
each other equation becomes a node, or none: an axis of size 1 that comes or goes and an order of
axes are remembered with the tensor (`Tensor.axes`) until a node needs them otherwise.
"""

import collections
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from se_flax.errors import UserError, extra_needed
from se_flax.nn import stock_operations

with extra_needed():
    import onnx
    from onnx import helper, numpy_helper

OLDEST_OPSET = 13
SAME = {  # primitives of JAX that are an operator of ONNX
    **{'logistic': 'Sigmoid', 'tanh': 'Tanh', 'exp': 'Exp', 'neg': 'Neg', 'sqrt': 'Sqrt'},
    **{'add': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max', 'min': 'Min'},
}
NCHW = (0, 3, 1, 2)  # the jaxpr's axes in the order of ONNX
CALLS = ('jit', 'remat2', 'custom_jvp_call', 'custom_vjp_call')  # run the jaxpr in them, once
SLOPE = {'alpha': 1 / 6, 'beta': 0.5}  # HardSigmoid's own is 0.2


class Tensor(NamedTuple):
    """What a value of the jaxpr is in the graph: `scale` times a tensor.

    Attributes:
        axes: the jaxpr's axis for each of the tensor's; None for one that the jaxpr does not have.
            Axes of the jaxpr that are missing here have size 1.
        shape: of the tensor, for a batch of 1; an axis of 1 may stand for any that is broadcast.
    """

    name: str
    axes: tuple[int | None, ...]
    shape: tuple[int, ...]
    scale: float = 1

    def labeled(self, of: dict[int, int], ndim: int) -> 'Tensor':
        """Gives axes new numbers; those without one, of size 1, stand for what is missing."""
        axes = [None if a is None else of.get(a) for a in self.axes]
        missing = iter(sorted(set(range(ndim)) - set(axes)))
        return self._replace(axes=tuple(next(missing, None) if a is None else a for a in axes))


def channels_first(ndim: int) -> tuple[int, ...]:
    """Returns the order of a map's axes: batch, channels, in groups or not, and positions."""
    return (0, *range(3, ndim), 1, 2) if ndim > 3 else tuple(range(ndim))


def is_hard_sigmoid(closed: ClosedJaxpr) -> bool:
    """Returns whether a jaxpr is that of `jax.nn.hard_sigmoid`, by comparing their text."""
    if len(closed.in_avals) != 1 or len(closed.eqns) != 3:
        return False
    [call] = jax.make_jaxpr(jax.nn.hard_sigmoid)(*closed.in_avals).eqns
    return str(closed) == str(call.params['jaxpr'])


class Converter:
    """Makes nodes and weights of the equations of a jaxpr."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, array: Any) -> str:
        name = f'weight_{len(self.weights)}'
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f'{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def tensor(self, like: Tensor, kind: str, *inputs: str, **attributes: Any) -> Tensor:
        """Adds a node whose result has the axes and the shape of another."""
        return like._replace(name=self.node(kind, *inputs, **attributes), scale=1)

    def full(
        self, out: Any, axes: Sequence[int], kind: str, *inputs: str, **attributes: Any
    ) -> Tensor:
        """Adds a node whose result is all of the jaxpr's `out`, its axes in this order."""
        name = self.node(kind, *inputs, **attributes)
        return Tensor(name, tuple(axes), tuple(out.shape[a] for a in axes))

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """Returns the outputs: Tensors, or arrays if they depend on constants alone."""
        jaxpr = closed.jaxpr
        variables, values = (*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *inputs)
        env: dict[Any, Any] = dict(zip(variables, values, strict=True))
        for eqn in jaxpr.eqns:
            given = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            if eqn.primitive.name in CALLS:
                inner = eqn.params.get('jaxpr') or eqn.params['call_jaxpr']
                inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
                if is_hard_sigmoid(inner) and isinstance(given[0], Tensor):
                    x = self.scaled(given[0])
                    results = [self.tensor(x, 'HardSigmoid', x.name, **SLOPE)]
                else:
                    results = self.run(inner, given)
            elif not any(isinstance(value, Tensor) for value in given):
                results = eqn.primitive.bind(*given, **eqn.params)
            else:
                results = self.equation(eqn, given)
            several = eqn.primitive.multiple_results
            env.update(zip(eqn.outvars, results if several else [results], strict=True))
        return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: Sequence[Any]) -> Tensor:
        name, aval = eqn.primitive.name, eqn.outvars[0].aval
        if name in SAME:
            return self.elementwise(name, values, aval.ndim)
        if rule := getattr(self, f'_on_{name}', None):
            shapes = [v.aval.shape for v in eqn.invars]
            given = {'shapes': shapes, 'shape': shapes[0], 'out': aval}
            return rule(*values, **eqn.params | given)
        raise UserError(f'ONNX export has no rule for {name}, of {eqn}')

    def scaled(self, x: Tensor) -> Tensor:
        if x.scale == 1:
            return x
        return self.tensor(x, 'Mul', x.name, self.weight(np.float32(x.scale)))

    def ordered(self, x: Tensor, axes: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
        """Returns the tensor with these axes; with `shape`, that of the jaxpr, nothing implied."""
        x, axes = self.scaled(x), tuple(axes)
        present = [a for a in axes if a in x.axes]
        if [a for a in x.axes if a is not None] != present:
            order = [x.axes.index(a) for a in present]
            order += [i for i, a in enumerate(x.axes) if a is None]
            x = Tensor(
                self.node('Transpose', x.name, perm=order),
                tuple(x.axes[i] for i in order),
                tuple(x.shape[i] for i in order),
            )
        if x.axes != axes:
            own = dict(zip(x.axes, x.shape, strict=True))
            x = self.reshaped(x, axes, [own.get(a, 1) for a in axes])
        want = x.shape if shape is None else tuple(shape[a] for a in axes)
        if x.shape != want:
            full = self.weight(np.array(want, np.int64))
            x = Tensor(self.node('Expand', x.name, full), axes, want)
        return x

    def reshaped(self, x: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
        sizes = self.weight(np.array([-1, *shape[1:]], np.int64))
        return Tensor(self.node('Reshape', x.name, sizes), tuple(axes), tuple(shape))

    def elementwise(self, name: str, values: Sequence[Any], ndim: int) -> Tensor:
        tensors = [v for v in values if isinstance(v, Tensor)]
        if len(values) == 2 and len(tensors) == 1:
            return self.with_constant(name, values[0], values[1], ndim)
        if len({x.axes for x in tensors}) > 1:
            tensors = [self.ordered(x, channels_first(ndim)) for x in tensors]
        tensors = [self.scaled(x) for x in tensors]
        shape = np.broadcast_shapes(*(x.shape for x in tensors))
        return self.tensor(tensors[0], SAME[name], *(x.name for x in tensors))._replace(shape=shape)

    def with_constant(self, name: str, a: Any, b: Any, ndim: int) -> Tensor:
        first = isinstance(a, Tensor)
        x, c = (a, b) if first else (b, a)
        c = shrunk(np.asarray(c))
        if c.size == 1 and (name == 'mul' or name == 'div' and first):
            return x._replace(scale=x.scale * c.item() if name == 'mul' else x.scale / c.item())
        if name == 'div' and first:
            name, c = 'mul', 1 / c
        if name == 'mul':
            c, x = c * x.scale, x._replace(scale=1)
        x = self.scaled(x)
        if name == 'max' and c.size == 1 and c.item() == 0:
            return self.tensor(x, 'Relu', x.name)
        if any(n > 1 and a not in x.axes for a, n in enumerate(c.shape)):
            x = self.ordered(x, channels_first(ndim))
        if c.ndim:
            own = [a for a in x.axes if a is not None]
            rest = [a for a in range(ndim) if a not in own]  # of size 1
            sizes = [1 if a is None else c.shape[a] for a in x.axes]
            c = c.transpose([*own, *rest]).reshape(sizes)
        names = [x.name, self.weight(c.astype(np.float32))]
        y = self.tensor(x, SAME[name], *(names if first else names[::-1]))
        return y._replace(shape=np.broadcast_shapes(x.shape, c.shape))

    def _on_convert_element_type(self, x, new_dtype, **_):
        if new_dtype != np.float32:
            raise UserError(f'ONNX export is of float32 networks; this one has {new_dtype}')
        return self.tensor(x, 'Cast', x.name, to=onnx.TensorProto.FLOAT)

    def _on_conv_general_dilated(self, x, kernel, *, shape, out, padding, **params):
        if params['lhs_dilation'] != (1, 1):
            raise UserError('ONNX export is of 2-D convolutions that are not transposed')
        kernel = np.asarray(kernel).transpose(3, 2, 0, 1)
        names = {'window_strides': 'strides', 'rhs_dilation': 'dilations'}
        names['feature_group_count'] = 'group'
        fields = {name: params[key] for key, name in names.items()}
        return self._window('Conv', x, shape, out, kernel.shape[2:], padding, kernel, **fields)

    def _window(self, kind, x, shape, out, size, padding, *weights, **fields):
        """Adds a node that slides a window over maps, `padding` being (low, high) an axis."""
        x = self.ordered(x, NCHW, shape)
        fields['pads'] = [p for side in zip(*padding, strict=True) for p in side]
        inputs = [x.name, *map(self.weight, weights)]
        return self.full(out, NCHW, kind, *inputs, kernel_shape=size, **fields)

    def _pool(self, kind, x, *, shape, out, window_dimensions, window_strides, padding, **params):
        dilations = {*params['base_dilation'], *params['window_dilation']}
        if dilations != {1} or window_dimensions[::3] != (1, 1):
            raise UserError('ONNX export pools over height and width, without dilation')
        fields = {'count_include_pad': 1} if kind == 'AveragePool' else {}
        fields |= {'strides': window_strides[1:3]}
        return self._window(kind, x, shape, out, window_dimensions[1:3], padding[1:3], **fields)

    def _on_reduce_window_max(self, x, **params):
        return self._pool('MaxPool', x, **params)

    def _on_reduce_window_sum(self, x, **params):
        y = self._pool('AveragePool', x, **params)
        return y._replace(scale=math.prod(params['window_dimensions']))

    def _reduced(self, kind, x, shape, axes):
        if len(shape) != 4 or tuple(axes) != (1, 2):
            raise UserError(f'ONNX export reduces maps over height and width, not over {axes}')
        x = self.ordered(x, NCHW, shape)
        return Tensor(self.node(kind, x.name), (0, 1, None, None), (*x.shape[:2], 1, 1))

    def _on_reduce_sum(self, x, *, shape, axes, **_):
        y = self._reduced('GlobalAveragePool', x, shape, axes)
        return y._replace(scale=math.prod(shape[a] for a in axes))

    def _on_reduce_max(self, x, *, shape, axes, **_):
        return self._reduced('GlobalMaxPool', x, shape, axes)

    def _on_broadcast_in_dim(self, x, *, out, broadcast_dimensions, **_):
        return x.labeled(dict(enumerate(broadcast_dimensions)), out.ndim)

    def _on_transpose(self, x, *, permutation, **_):
        return x.labeled({a: i for i, a in enumerate(permutation)}, len(permutation))

    def _on_reshape(self, x, *, shape, out, **_):
        old, new = ([0, *(i for i, n in enumerate(s) if i and n > 1)] for s in (shape, out.shape))
        if [shape[i] for i in old] == [out.shape[i] for i in new]:  # only axes of size 1 change
            return x.labeled(dict(zip(old, new, strict=True)), out.ndim)
        if min(len(shape), out.ndim) > 3 and shape[:3] == out.shape[:3]:  # groups of channels
            before, after = channels_first(len(shape)), channels_first(out.ndim)
        else:
            before, after = range(len(shape)), range(out.ndim)
        x = self.ordered(x, before, shape)
        return self.reshaped(x, after, [out.shape[a] for a in after])

    _on_squeeze = _on_reshape

    def _on_concatenate(self, *values, shapes, out, dimension, **_):
        if not all(isinstance(value, Tensor) for value in values):
            raise UserError('ONNX export concatenates maps, but no constants')
        axes = channels_first(out.ndim)
        parts = zip(values, shapes, strict=True)
        names = [self.ordered(x, axes, shape).name for x, shape in parts]
        return self.full(out, axes, 'Concat', *names, axis=axes.index(dimension))

    def _on_slice(self, x, *, shape, out, start_indices, limit_indices, strides, **_):
        axes = channels_first(out.ndim)
        x = self.ordered(x, axes, shape)
        steps = strides or [1] * out.ndim
        cut = [a for a in range(out.ndim) if out.shape[a] != shape[a]]
        of = [[v[a] for a in cut] for v in (start_indices, limit_indices)]
        of += [[axes.index(a) for a in cut], [steps[a] for a in cut]]
        names = [self.weight(np.array(v, np.int64)) for v in of]
        return self.full(out, axes, 'Slice', x.name, *names)

    def _on_pad(self, x, value, *, shape, out, padding_config, **_):
        axes = channels_first(out.ndim)
        x = self.ordered(x, axes, shape)
        pads = [padding_config[a][side] for side in (0, 1) for a in axes]
        inputs = [np.array(pads, np.int64), np.asarray(value)]
        return self.full(out, axes, 'Pad', x.name, *map(self.weight, inputs))

    def _on_dot_general(self, x, y, *, shapes, shape, out, dimension_numbers, **_):
        contract, batch = dimension_numbers
        last = len(shape) - 1
        if isinstance(x, Tensor) and not isinstance(y, Tensor) and contract == ((last,), (0,)):
            kernel = np.asarray(y)
            if last == 3 and kernel.ndim == 2:  # a dense layer at each position
                kernel, sides = kernel.T.reshape(*kernel.shape[::-1], 1, 1), ((0, 0), (0, 0))
                return self._window('Conv', x, shape, out, (1, 1), sides, kernel, strides=(1, 1))
            if last == 1:
                x = self.ordered(x, (0, 1), shape)
                return self.full(out, (0, 1), 'Gemm', x.name, self.weight(kernel))
        return self._einsum((x, y), shapes, contract, batch, out)

    def _einsum(self, values, shapes, contract, batch, out):
        """Any other product, in the jaxpr's order of axes."""
        free = iter(string.ascii_lowercase)
        x, y = ([next(free) for _ in shape] for shape in shapes)
        for of_x, of_y in (*zip(*batch, strict=True), *zip(*contract, strict=True)):
            y[of_y] = x[of_x]
        own = [letter for letter in (*x, *y) if letter not in x or letter not in y]
        result = [*(x[axis] for axis in batch[0]), *own]
        names = [
            self.ordered(v, range(len(shape)), shape).name
            if isinstance(v, Tensor)
            else self.weight(np.asarray(v))
            for v, shape in zip(values, shapes, strict=True)
        ]
        equation = f'{"".join(x)},{"".join(y)}->{"".join(result)}'
        return self.full(out, range(out.ndim), 'Einsum', *names, equation=equation)


def shrunk(array: np.ndarray) -> np.ndarray:
    """Returns the array with size 1 along the axes along which it repeats itself."""
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis)
        if size > 1 and (array == first).all():
            array = first
    return array


def live(nodes: Sequence[Any], output: str) -> list[Any]:
    """Returns the nodes that the output depends on."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if node.output[0] in needed:
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def fold_into_layers(nodes: Sequence[Any], weights: dict[str, np.ndarray]) -> list[Any]:
    """Makes factors and offsets of channels part of the convolution or product before them."""
    uses = collections.Counter(name for node in nodes for name in node.input)
    kept: list[Any] = []
    layers: dict[str, Any] = {}  # by the name of an output that only one node takes
    for node in nodes:
        layer = next((layers[name] for name in node.input if name in layers), None)
        value = next((weights[name] for name in node.input if name in weights), None)
        if layer is not None and value is not None and absorb(node.op_type, value, layer, weights):
            layer.output[0] = node.output[0]
        else:
            kept.append(node)
            layer = node if node.op_type in ('Conv', 'Gemm') else None
        if layer is not None and uses[node.output[0]] == 1:
            layers[node.output[0]] = layer
    return kept


def absorb(kind: str, value: np.ndarray, layer: Any, weights: dict[str, np.ndarray]) -> bool:
    """Multiplies or adds a number for each channel in a layer; returns whether that can be."""
    kernel = weights[layer.input[1]]
    channels = kernel.shape[0 if layer.op_type == 'Conv' else -1]
    if kind not in ('Mul', 'Add') or value.size not in (1, channels):
        return False
    if value.size > 1 and value.shape[1] != value.size:
        return False
    value = np.broadcast_to(value.reshape(-1), channels)
    if len(layer.input) == 2:
        layer.input.append(f'{layer.name}_bias')
        weights[layer.input[2]] = np.zeros(channels, np.float32)
    bias = layer.input[2]
    if kind == 'Add':
        weights[bias] = weights[bias] + value
    else:
        weights[bias] = weights[bias] * value
        of_kernel = (-1, 1, 1, 1) if layer.op_type == 'Conv' else (1, -1)
        weights[layer.input[1]] = kernel * value.reshape(of_kernel)
    return True


def to_onnx(
    function: Callable[[jax.Array], jax.Array],
    images: jax.ShapeDtypeStruct,
    *,
    nchw: bool,
    opset: int,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Converts a function of images `[1, H, W, C]` to logits into a model for any batch.

    The graph's `images` are `[B, H, W, C]`, or with `nchw` `[B, C, H, W]`. Raises UserError for an
    opset that is too old or too new, and for an operation without a rule.
    """
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f'opset={opset} must be {OLDEST_OPSET} to {newest}')
    with stock_operations():
        closed = jax.make_jaxpr(function)(images)
    [out], axes = closed.out_avals, NCHW if nchw else range(4)
    converter, shape = Converter(), [images.shape[a] for a in axes]
    given = Tensor('images', tuple(axes), tuple(shape))
    [result] = converter.run(closed, [given])
    result = converter.ordered(result, range(out.ndim), out.shape)
    nodes = live(converter.nodes, result.name)
    nodes = fold_into_layers(nodes, converter.weights)
    nodes[-1].output[0] = 'logits'
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(v, k) for k, v in converter.weights.items() if k in used]

    def value_info(name, dtype, shape):
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return helper.make_tensor_value_info(name, kind, ['batch', *shape[1:]])

    given = value_info('images', images.dtype, shape)
    made = value_info('logits', out.dtype, out.shape)
    graph = helper.make_graph(nodes, 'se_flax', [given], [made], weights)
    version = [helper.make_opsetid('', opset)]
    model = helper.make_model_gen_version(graph, opset_imports=version, producer_name='se_flax')
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
