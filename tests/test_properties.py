"Properties of every loss of the registries, on batches that hypothesis thinks up: symmetries, finiteness, dtypes, strides and tiles."
import math
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrastive_nb import pairs
from contrastive_nb.label_losses import LABEL_LOSSES
from contrastive_nb.losses import LOSSES, MULTIVIEW_LOSSES, loss_parameters

# what a loss must be given, and where it differs from the others; all else is read from its class
GIVEN = dict(temperature=.2, n=50)
ASYMMETRIC = {'cacr', 'ainfonce', 'dscl'}                   # the views have roles
BY_COLUMN = {'vicreg', 'barlow', 'ssge', 'relu_scl'}        # coordinates have a meaning of their own
TWO_VIEWS = {'dscl'}

REGISTRY = LOSSES | MULTIVIEW_LOSSES | LABEL_LOSSES
NAMES = pytest.mark.parametrize('name', REGISTRY)
NORMALIZED = [name for name, kind in REGISTRY.items() if loss_parameters(kind.fn)['normalize']]


def examples(n=20): return settings(settings.get_profile('ci'), max_examples=n, suppress_health_check=list(HealthCheck))   # the same examples in each run, no deadline


@dataclass
class Batch:
    "Views (V, B, D) and what a loss may take beside them."
    z:torch.Tensor
    labels:torch.Tensor       # (B,), at least two classes
    weights:torch.Tensor      # (V*B, V*B), of pairs of rows
    prototypes:torch.Tensor   # (3, D)

    def of(self, z=None, order=None, views=None, turn=None):
        "The batch with other views, and with its images, views or axes brought into another order."
        V, B, _ = self.z.shape
        rows = torch.arange(V*B).view(V, B)
        rows = rows[slice(None) if views is None else views][:, slice(None) if order is None else order].flatten()
        z = (self.z if z is None else z).flatten(0, 1)[rows].view(self.z.shape)
        return Batch(z if turn is None else z@turn, self.labels if order is None else self.labels[order], self.weights[rows][:, rows], self.prototypes if turn is None else self.prototypes@turn)


def inputs(name, b):
    "Arguments for a loss: of the kinds that its class's example has."
    example = REGISTRY[name].example
    if example[0].ndim==2: return b.z[0], b.z[1]
    V, B, _ = example[0].shape
    others = [b.labels if x.ndim==1 else b.weights if x.shape==(V*B, V*B) else b.prototypes for x in example[1:]]
    return b.z, *others

def call(name, b, **params):
    known = loss_parameters(REGISTRY[name].fn)
    return REGISTRY[name].fn(*inputs(name, b), **{p: v for p, v in GIVEN.items() if p in known} | params)

def value_and_grad(name, b, **params):
    z = b.z.detach().clone().requires_grad_()
    value = call(name, Batch(z, b.labels, b.weights, b.prototypes), **params)
    return value.detach(), torch.autograd.grad(value, z, allow_unused=True, materialize_grads=True)[0]


@st.composite
def batches(draw, name, dtype=torch.float64, hard=False, largest=9):
    "Batches of 2 views, or 3 where the loss takes them; `hard` ones with copies, antipodes, zeros and lengths of many decades."
    V = 2 if name in LOSSES or name in TWO_VIEWS else draw(st.integers(2, 3))
    B, D = draw(st.integers(2, largest)), draw(st.integers(1, 6) if hard else st.integers(3, 6))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z = torch.randn(V, B, D, generator=g, dtype=torch.float64)
    if hard:
        row = st.tuples(st.integers(0, V-1), st.integers(0, B-1))
        for _ in range(draw(st.integers(1, 2*B))):
            to, start, factor = draw(row), draw(row), draw(st.sampled_from([1., 1., -1., 0., 1e-9]))
            z[to] = factor*z[start] if factor!=1e-9 else z[start]*(1 + 1e-9*torch.randn(D, generator=g, dtype=torch.float64))
        decades = {torch.float64: 150, torch.float32: 30, torch.bfloat16: 30, torch.float16: 3}[dtype] if name in NORMALIZED else 3 if dtype==torch.float16 else 8
        scale = draw(st.sampled_from(['none', 'all', 'rows']))
        if scale=='all': z *= 10.**draw(st.integers(-decades, decades))
        if scale=='rows': z *= 10.**torch.tensor(draw(st.lists(st.integers(-decades, decades), min_size=V*B, max_size=V*B)), dtype=torch.float64).view(V, B, 1)
    weights = torch.rand(V*B, V*B, generator=g, dtype=torch.float64)*(torch.rand(V*B, V*B, generator=g) < .5)
    labels = torch.tensor([0, 1] + draw(st.lists(st.integers(0, 2), min_size=B-2, max_size=B-2)))
    prototypes = torch.linalg.qr(torch.randn(max(3, D), max(3, D), generator=g, dtype=torch.float64))[0][:3, :D]
    finite = torch.finfo(dtype).max
    return Batch(z.clamp(-finite, finite).to(dtype), labels, weights, prototypes.to(dtype))


def close(got, expected, rtol=1e-9):
    for g, e in zip(got, expected, strict=True): assert (g - e).abs().max() <= rtol*max(1, e.abs().max()), ((g - e).abs().max()/e.abs().max()).item()


@NAMES
@examples()
@given(data=st.data())
def test_the_order_of_images_is_nothing(name, data):
    b = data.draw(batches(name))
    order = torch.tensor(data.draw(st.permutations(range(b.z.shape[1]))))
    value, grad = value_and_grad(name, b)
    close(value_and_grad(name, b.of(order=order)), (value, grad[:, order]))

@pytest.mark.parametrize('name', [name for name in REGISTRY if name not in ASYMMETRIC])
@examples()
@given(data=st.data())
def test_the_order_of_views_is_nothing(name, data):
    b = data.draw(batches(name))
    views = torch.tensor(data.draw(st.permutations(range(len(b.z)))))
    value, grad = value_and_grad(name, b)
    close(value_and_grad(name, b.of(views=views)), (value, grad[views]))

@pytest.mark.parametrize('name', [name for name in REGISTRY if name not in BY_COLUMN])
@examples()
@given(data=st.data())
def test_turning_space(name, data):
    b = data.draw(batches(name))
    turn = torch.linalg.qr(torch.randn(b.z.shape[2], b.z.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))))[0]
    value, grad = value_and_grad(name, b)
    close(value_and_grad(name, b.of(turn=turn)), (value, grad@turn))

@pytest.mark.parametrize('name', NORMALIZED)
@examples()
@given(data=st.data())
def test_lengths_of_rows_are_nothing(name, data):
    b = data.draw(batches(name))
    V, B, _ = b.z.shape
    scale = 10.**torch.tensor(data.draw(st.lists(st.floats(-20, 20), min_size=V*B, max_size=V*B)), dtype=torch.float64).view(V, B, 1)
    value, grad = value_and_grad(name, b)
    scaled, its = value_and_grad(name, b.of(z=b.z*scale))
    close((scaled, its*scale), (value, grad))
    close(((b.z*grad).sum(2),), (torch.zeros(V, B),))   # no gain from growing

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@NAMES
@examples(15)
@given(data=st.data())
def test_finite_rows_give_finite_values_and_gradients(name, dtype, data):
    b = data.draw(batches(name, dtype, hard=True))
    value, grad = value_and_grad(name, b)
    assert value.shape==() and value.dtype==(torch.float64 if dtype==torch.float64 else torch.float32)
    assert grad.shape==b.z.shape and grad.dtype==dtype
    assert value.isfinite()
    if dtype==torch.float16: assert not grad.isnan().any()   # the slope at a row of length 1e-6 leaves its range
    else: assert grad.isfinite().all()

@NAMES
@examples(10)
@given(data=st.data())
def test_a_number_that_is_none_is_never_lost(name, data):
    b = data.draw(batches(name))
    bad = data.draw(st.sampled_from([math.nan, math.inf] + [-math.inf]*(name!='relu_scl')))   # whose ReLU makes zero of it
    at = tuple(data.draw(st.integers(0, n-1)) for n in b.z.shape)
    b.z[at] = bad
    with pytest.raises(ValueError, match='must be finite, row'): call(name, b)
    assert not call(name, b, validate=False).isfinite()

@NAMES
@examples(10)
@given(data=st.data())
def test_strides_are_nothing(name, data):
    b = data.draw(batches(name))
    expected = value_and_grad(name, b)
    wide = torch.randn(*b.z.shape[:2], 2*b.z.shape[2] + 1, dtype=torch.float64)
    wide[:, :, 1::2] = b.z
    for leaf, view in ((wide, lambda x: x[:, :, 1::2]), (b.z.permute(2, 1, 0).contiguous(), lambda x: x.permute(2, 1, 0)), (b.z.flip(1), lambda x: x.flip(1))):
        leaf = leaf.clone().requires_grad_()
        value = call(name, Batch(view(leaf), b.labels, b.weights, b.prototypes))
        grad, = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        close((value.detach(), view(grad)), expected)

@NAMES
@examples(10)
@given(data=st.data())
def test_expanded_rows(name, data):
    b = data.draw(batches(name))
    row = b.z[:, :1].clone().requires_grad_()
    value = call(name, Batch(row.expand(b.z.shape), b.labels, b.weights, b.prototypes))
    grad, = torch.autograd.grad(value, row, allow_unused=True, materialize_grads=True)
    expected, grads = value_and_grad(name, b.of(z=row.detach().repeat(1, b.z.shape[1], 1)))
    close((value.detach(), grad), (expected, grads.sum(1, keepdim=True)))

@NAMES
@examples(15)
@given(data=st.data())
def test_tiles_are_nothing(name, data):
    b = data.draw(batches(name, largest=12))
    expected = value_and_grad(name, b)
    height = data.draw(st.integers(1, 30))
    tile = height, height + data.draw(st.integers(0, 30))   # no higher than wide
    with patch.object(pairs, 'TILE', tile), patch.object(pairs, 'KEPT', data.draw(st.sampled_from([0, 2**22]))): close(value_and_grad(name, b), expected)

@pytest.mark.parametrize('name', [name for name in LABEL_LOSSES if name!='clop'])   # its labels number the prototypes
@examples()
@given(data=st.data())
def test_labels_are_names(name, data):
    b = data.draw(batches(name))
    to = torch.tensor(data.draw(st.lists(st.integers(-2**62, 2**62), min_size=3, max_size=3, unique=True)))
    close(value_and_grad(name, Batch(b.z, to[b.labels], b.weights, b.prototypes)), value_and_grad(name, b))
