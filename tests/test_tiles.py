"The tiled sums over pairs against their dense forms: values, gradients, every awkward size, shape and input."
import itertools
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from contrastive_nb import pairs
from contrastive_nb.kernels import gaussian, imq, log, riesz
from contrastive_nb.losses import dcl, dhel, infonce, kcl, ntxent, off_diagonal_softplus, softmin_sqdist
from contrastive_nb.pairs import block_repulsion, class_repulsion, log_repulsion, log_repulsions, mean_kernel, off_diagonal
from contrastive_nb.sphere import unit

RTOL = {torch.float32: 1e-5, torch.float64: 1e-12}
def cauchy(d2): return 1/(1 + d2)**2   # a kernel that gives no slope

KERNELS = gaussian(), log(), imq(.5), riesz(-1.), riesz(1.), cauchy


def rows(B, D=16, dtype=torch.float64, n=2, seed=0):
    g = torch.Generator().manual_seed(1000*B + D + seed)
    return [unit(torch.randn(B, D, generator=g, dtype=dtype)) for _ in range(n)]

def dense_repulsion(anchors, *others, temperature):
    return torch.cat([off_diagonal(anchors @ o.T) for o in others], dim=1).div(temperature).logsumexp(1)

def repulsions(*views, **how): return tuple(log_repulsions(torch.stack(views), **how))

def dense_repulsions(*views, temperature, within=True, across=True):
    return tuple(dense_repulsion(a, *[o for o in views if (within if o is a else across)], temperature=temperature) for a in views)

def dense_class_repulsion(x, labels, same, temperature):
    out = ((labels[:, None]==labels)!=same) | torch.eye(len(x), dtype=torch.bool)
    return (x @ x.T/temperature).masked_fill(out, -torch.inf).logsumexp(1)

def dense_mean_kernel(z, kernel): return kernel(off_diagonal((z[:, None] - z).square().sum(2))).mean()

def value_and_gradients(f, *inputs):
    "Values, and gradients of their sum with weights that tell all rows apart."
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    values = f(*inputs)
    values = torch.cat([v.reshape(-1) for v in (values if isinstance(values, tuple) else (values,))])
    weights = 1 + torch.linspace(0, 1, len(values), dtype=values.dtype)
    return values.detach(), *torch.autograd.grad((values*weights).sum(), inputs)   # no product that autocast would lower

def same(got, expected, rtol):
    "Equal relative to the largest entry: single entries of a gradient may cancel."
    for g, e in zip(got, expected, strict=True): assert (g - e).abs().max() <= rtol*e.abs().max(), ((g - e).abs().max()/e.abs().max()).item()


FORMS = {
    'within': (lambda a, o, **k: log_repulsion(a, a, **k), lambda a, o, **k: dense_repulsion(a, a, **k) + 0*o.sum()),
    'across': (log_repulsion, dense_repulsion),
    'one-sided': (lambda a, o, **k: log_repulsion(a, a, o, **k), lambda a, o, **k: dense_repulsion(a, a, o, **k)),
    'twice': (lambda a, o, **k: log_repulsion(a, a, a, o, **k), lambda a, o, **k: dense_repulsion(a, a, a, o, **k)),
    'both': (repulsions, dense_repulsions),
    'both-within': (lambda a, o, **k: repulsions(a, o, across=False, **k), lambda a, o, **k: dense_repulsions(a, o, across=False, **k)),
    'several': (lambda a, o, **k: repulsions(a, o, -a, **k), lambda a, o, **k: dense_repulsions(a, o, -a, **k)),
    'several-across': (lambda a, o, **k: repulsions(a, o, -a, within=False, **k), lambda a, o, **k: dense_repulsions(a, o, -a, within=False, **k)),
    'both-across': (lambda a, o, **k: repulsions(a, o, within=False, **k), lambda a, o, **k: dense_repulsions(a, o, within=False, **k)),
}

def compare(form, B, dtype, tile, temperature=.2, rtol=None):
    tiled, dense = FORMS[form]
    z = rows(B, dtype=dtype)
    inputs = z[:1] if form=='within' else z
    fill = (z[1],) if form=='within' else ()
    same(value_and_gradients(lambda *z: tiled(*z, *fill, temperature=temperature, tile=tile), *inputs),
         value_and_gradients(lambda *z: dense(*z, *fill, temperature=temperature), *inputs), rtol or RTOL[dtype])


@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('B', [2, 3, 5, 7, 31, 65])
def test_small(form, B, dtype):
    for tile in (None, 1, 2, 3, 1000) if B<8 else (None, 8, 13, 64, 65, 1000): compare(form, B, dtype, tile)

@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('form', ['within', 'one-sided', 'both', 'both-across'])
@pytest.mark.parametrize('B, tiles', [(255, (None, 100)), (257, (None, 256)), (513, (None, 128)), (1025, (None, 511)), (2500, (None,))])
def test_large(form, B, tiles, dtype):
    for tile in tiles: compare(form, B, dtype, tile)

@pytest.mark.parametrize('dtype', RTOL, ids=str)
def test_4097(dtype):
    compare('within', 4097, dtype, None)
    z, = rows(4097, dtype=dtype, n=1)
    def plain(z):
        q = z.square().sum(1)
        return torch.exp(-2*off_diagonal(q[:, None] + q - 2*z @ z.T)).mean()
    same(value_and_gradients(lambda z: mean_kernel(unit(z), gaussian(), radial=False), z), value_and_gradients(lambda z: plain(unit(z)), z.double()), RTOL[dtype])

@pytest.mark.parametrize('temperature', [10., .1, .02, .012, .005, 1e-3, 1e-6])
@pytest.mark.parametrize('form', FORMS)
def test_temperatures(form, temperature):
    for tile in (None, 10): compare(form, 33, torch.float64, tile, temperature, rtol=1e-12 + 1e-14/temperature)   # of logits as large as 1/temperature

@pytest.mark.parametrize('scale', [1e-20, 1e-3, 30., 1e5])
def test_rows_of_any_length(scale):
    z = [scale*x for x in rows(40)]
    for tile in (None, 7):
        same(value_and_gradients(lambda *z: repulsions(*z, temperature=.2, tile=tile), *z), value_and_gradients(lambda *z: dense_repulsions(*z, temperature=.2), *z), 1e-12 + 1e-14*scale**2)
        same(value_and_gradients(lambda z: mean_kernel(z, imq(), tile=tile), z[0]), value_and_gradients(lambda z: dense_mean_kernel(z, imq()), z[0]), 1e-10)


@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('kernel', KERNELS, ids=lambda k: getattr(k, '__name__', str(k)))
@pytest.mark.parametrize('B', [2, 3, 5, 31, 65, 257, 530])
def test_mean_kernel(kernel, B, dtype):
    z, = rows(B, dtype=dtype, n=1)
    expected = value_and_gradients(lambda z: dense_mean_kernel(z, kernel), z.double())
    on_sphere = value_and_gradients(lambda z: dense_mean_kernel(unit(z), kernel), z.double())
    for tile in (None, 64, 1000) if B>8 else (None, 1, 3, 1000):
        same(value_and_gradients(lambda z: mean_kernel(z, kernel, tile=tile), z), expected, RTOL[dtype])
        same(value_and_gradients(lambda z: mean_kernel(unit(z), kernel, radial=False, tile=tile), z), on_sphere, RTOL[dtype])

LABELS = dict(few=lambda B: torch.arange(B) % 3, sorted=lambda B: torch.arange(B)//2, one=lambda B: torch.zeros(B, dtype=torch.long), all=torch.arange,
              odd=lambda B: torch.where(torch.arange(B)==B//2, -2**40, 7))

@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('labels', LABELS)
@pytest.mark.parametrize('alike', [True, False])
@pytest.mark.parametrize('B, tiles', [(2, (None, 1)), (5, (None, 2)), (65, (None, 16)), (600, (None,))])
def test_classes(B, tiles, alike, labels, dtype):
    x, = rows(B, dtype=dtype, n=1)
    y = LABELS[labels](B)
    some = dense_class_repulsion(x, y, alike, .2).isfinite()
    for temperature, tile in itertools.product((.2, .004), tiles):
        def tiled(x): return class_repulsion(x, y, same=alike, temperature=temperature, tile=tile)
        def dense(x): return dense_class_repulsion(x, y, alike, temperature)
        assert (tiled(x)==-torch.inf).equal(~some)
        if some.any(): same(value_and_gradients(lambda x: tiled(x)[some], x), value_and_gradients(lambda x: dense(x)[some], x), RTOL[dtype] if temperature>.1 else 10*RTOL[dtype])
        x0 = x.clone().requires_grad_()
        tiled(x0).masked_fill(~some, 0).sum().backward()
        assert x0.grad.isfinite().all()

def test_classes_gradcheck_and_transforms():
    x, y = rows(5, 3, n=1)[0].requires_grad_(), torch.tensor([0, 1, 0, 1, 1])
    for alike in (True, False):
        def f(x): return class_repulsion(x, y, same=alike, temperature=.3, tile=2)
        assert gradcheck(f, x) and gradgradcheck(f, x)
        assert_close(torch.func.vmap(f)(x.detach()[None])[0], f(x.detach()))

@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('M, N', [(2, 1), (3, 500), (300, 7), (65, 66)])
def test_block(M, N, dtype):
    a, o = rows(M, dtype=dtype)[0], rows(N, dtype=dtype, n=1)[0]
    for temperature, tile in itertools.product((.2, .004), (None, 20)):
        same(value_and_gradients(lambda a, o: block_repulsion(a, o, temperature=temperature, tile=tile), a, o),
             value_and_gradients(lambda a, o: (a @ o.T/temperature).logsumexp(1), a, o), RTOL[dtype] if temperature>.1 else 10*RTOL[dtype])

@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('B', [2, 3, 63, 64, 65, 200])
def test_strips(B, dtype, monkeypatch):
    monkeypatch.setattr(pairs, 'STRIP', 1)   # strips of 64 rows
    z = rows(B, dtype=dtype)
    def dense_softplus(a, b): return torch.nn.functional.softplus(off_diagonal(10*a @ b.T - 3), threshold=50).sum()
    def dense_softmin(a, b):
        d2 = off_diagonal((a[:, None] - b).square().sum(2))
        return (torch.softmax(-.9*d2, 1)*d2).sum(1)
    same(value_and_gradients(lambda a, b: off_diagonal_softplus(a, b, 10., -3.), *z), value_and_gradients(dense_softplus, *(x.double() for x in z)), RTOL[dtype])
    same(value_and_gradients(lambda a, b: softmin_sqdist(a, b, .9), *z), value_and_gradients(dense_softmin, *(x.double() for x in z)), RTOL[dtype])

def test_strips_gradgradcheck(monkeypatch):
    monkeypatch.setattr(pairs, 'STRIP', 1)
    z = [x.requires_grad_() for x in rows(66, 2)]
    assert gradgradcheck(lambda a, b: softmin_sqdist(a, b, .9), z, fast_mode=True)
    assert gradgradcheck(lambda a, b: off_diagonal_softplus(a, b, 10., -3.), z, fast_mode=True)


@pytest.mark.parametrize('dtype', RTOL, ids=str)
@pytest.mark.parametrize('distance', [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize('s', [-1.5, -1., -.5, 1.])
def test_near_duplicates(s, distance, dtype):
    z, noise = rows(30, dtype=dtype)
    z = torch.cat([z, unit(z + distance*noise)])
    for tile in (None, 11): same(value_and_gradients(lambda z: mean_kernel(z, riesz(s), tile=tile), z), value_and_gradients(lambda z: dense_mean_kernel(z, riesz(s)), z), RTOL[dtype])


HARD = dict(zero=lambda z: z*(torch.arange(len(z)) % 3 > 0)[:, None], one_zero=lambda z: z*(torch.arange(len(z)) > 0)[:, None], all_zero=lambda z: 0*z,
            identical=lambda z: z[:1].repeat(len(z), 1), antipodal=lambda z: torch.cat([z[:len(z)//2], -z[:len(z)-len(z)//2]]))

@pytest.mark.parametrize('hard', HARD)
@pytest.mark.parametrize('tile', [None, 5])
def test_hard_rows(hard, tile):
    z1, z2 = (HARD[hard](z) for z in rows(12))
    for temperature in (.2, .003):
        same(value_and_gradients(lambda *z: repulsions(*z, temperature=temperature, tile=tile), z1, z2), value_and_gradients(lambda *z: dense_repulsions(*z, temperature=temperature), z1, z2), 1e-12)
    for kernel in (gaussian(), log(), imq(), riesz(-1.)):
        value, grad = value_and_gradients(lambda z: mean_kernel(z, kernel, tile=tile), z1)
        expected, dense = value_and_gradients(lambda z: dense_mean_kernel(z, kernel), z1)
        assert_close(value, expected, rtol=1e-12, atol=1e-12)
        assert_close(grad, dense, rtol=1e-9, atol=1e-12)

def test_gradient_on_one_side_only():
    z1, z2 = rows(20)
    for tile, (i, j) in itertools.product((None, 6), ((0, 1), (1, 0))):
        z = [z1.clone(), z2.clone()]
        z[i].requires_grad_()
        a, b = repulsions(*z, temperature=.2, tile=tile)
        got, = torch.autograd.grad(a.sum() + 2*b.sum(), z[i])
        c, d = dense_repulsions(*z, temperature=.2)
        assert_close(got, torch.autograd.grad(c.sum() + 2*d.sum(), z[i])[0])
        one = torch.autograd.grad(log_repulsion(*z, temperature=.2, tile=tile).sum(), z[i])[0]
        assert_close(one, torch.autograd.grad(dense_repulsion(*z, temperature=.2).sum(), z[i])[0])

def test_one_result_only():
    z1, z2 = (z.requires_grad_() for z in rows(20))
    for within in (True, False):
        got = torch.autograd.grad(repulsions(z1, z2, temperature=.2, within=within)[1].sum(), (z1, z2))
        same(got, torch.autograd.grad(dense_repulsions(z1, z2, temperature=.2, within=within)[1].sum(), (z1, z2)), 1e-12)

def test_same_tensor_twice():
    z, = rows(20, n=1)
    for f in (lambda z: repulsions(z, z, temperature=.2, tile=6), lambda z: repulsions(z, z, temperature=.2, within=False), lambda z: log_repulsion(z, z.view_as(z), temperature=.2)):
        value, grad = value_and_gradients(f, z)
        assert value.isfinite().all() and gradcheck(f, z.clone().requires_grad_())

@pytest.mark.parametrize('dtype', RTOL, ids=str)
def test_strides(dtype):
    z1, z2 = rows(300, 24, dtype)
    wide = torch.stack([z1, z2], 1).flatten(1)
    for views in ((z1.T.contiguous().T, z2.T.contiguous().T), (wide[:, :24], wide[:, 24:]), (z1.flip(0).flip(0), torch.stack([z2, z2], 2)[..., 0])):
        same(value_and_gradients(lambda a, b: repulsions(a, b, temperature=.2, tile=70), z1, z2),
             value_and_gradients(lambda a, b: repulsions(a, b, temperature=.2), z1, z2), RTOL[dtype])
        assert_close(repulsions(*views, temperature=.2, tile=70), repulsions(z1, z2, temperature=.2))
        assert_close(log_repulsion(*views, temperature=.2, tile=70), log_repulsion(z1, z2, temperature=.2))
        assert_close(mean_kernel(views[1], gaussian(), tile=70), mean_kernel(z2, gaussian()))
    expanded = z1[:1].expand(50, -1).requires_grad_()
    log_repulsion(expanded, expanded, temperature=.2).sum().backward()
    mean_kernel(expanded, gaussian()).backward()

@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
@pytest.mark.parametrize('value', [.2, .004])
def test_temperature_gradient(shape, value):
    z1, z2 = rows(20)
    for tile, within in itertools.product((None, 6), (True, False)):
        t = torch.full(shape, value, dtype=torch.float64, requires_grad=True)
        got, = torch.autograd.grad(sum(r.square().sum() for r in repulsions(z1, z2, temperature=t, within=within, tile=tile)), t)
        assert got.shape==shape
        assert_close(got, torch.autograd.grad(sum(r.square().sum() for r in dense_repulsions(z1, z2, temperature=t, within=within)), t)[0])
        assert_close(torch.autograd.grad(log_repulsion(z1, z1, z2, temperature=t, tile=tile).sum(), t), torch.autograd.grad(dense_repulsion(z1, z1, z2, temperature=t).sum(), t))

def test_temperature_of_another_dtype():
    z1, z2 = (z.requires_grad_() for z in rows(20, dtype=torch.float32))
    t = torch.tensor([.2], dtype=torch.float64, requires_grad=True)
    out = log_repulsion(z1, z2, temperature=t)
    out.sum().backward()
    assert out.dtype==torch.float32 and t.grad.dtype==torch.float64


@pytest.mark.parametrize('temperature', [.3, .001])
def test_gradcheck(temperature):
    z = [x.requires_grad_() for x in rows(5, 3)] + [torch.tensor(temperature, dtype=torch.float64, requires_grad=True)]
    for tile, form in itertools.product((None, 2), FORMS):
        if form=='within': f, inputs = lambda a, t: log_repulsion(a, a, temperature=t, tile=tile), (z[0], z[2])
        else: f, inputs = lambda a, o, t, g=FORMS[form][0]: g(a, o, temperature=t, tile=tile), z
        steps = dict(eps=1e-8, atol=1e-2, rtol=1e-3) if temperature<.01 else {}
        assert gradcheck(f, inputs, **steps)
        if temperature>.01: assert gradgradcheck(f, inputs)

def test_gradcheck_mean_kernel():
    z = rows(5, 3, n=1)[0].requires_grad_()
    for kernel in KERNELS:
        assert gradcheck(lambda z: mean_kernel(z, kernel, tile=2), z)
        assert gradgradcheck(lambda z: mean_kernel(z, kernel, tile=2), z)

def test_backward_twice():
    z1, z2 = (z.requires_grad_() for z in rows(30))
    for out in (repulsions(z1, z2, temperature=.2, tile=8)[0].sum(), repulsions(z1, z2, temperature=.001)[1].sum(), mean_kernel(z1, imq()) + z2.sum()):
        first = torch.autograd.grad(out, (z1, z2), retain_graph=True)
        same(torch.autograd.grad(out, (z1, z2)), first, 0)

def test_learnable_kernel():
    z, = rows(20, n=1)
    t = torch.tensor(2., dtype=torch.float64, requires_grad=True)
    assert_close(torch.autograd.grad(mean_kernel(z, lambda d2: torch.exp(-t*d2)), t), torch.autograd.grad(dense_mean_kernel(z, lambda d2: torch.exp(-t*d2)), t))
    assert torch.autograd.grad(mean_kernel(z, gaussian(t)), t)[0] < 0


def test_no_grad_and_inference():
    z1, z2 = (z.requires_grad_() for z in rows(300, dtype=torch.float32))
    expected = [*repulsions(z1, z2, temperature=.2), mean_kernel(z1, gaussian())]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = [*repulsions(z1, z2, temperature=.2), mean_kernel(z1, gaussian())]
            assert not any(x.requires_grad for x in got)
            same(got, [e.detach() for e in expected], 1e-6)

@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_autocast(half):
    z1, z2 = rows(300, dtype=torch.float32)
    def all_of(z1, z2): return *repulsions(z1, z2, temperature=.2), log_repulsion(z1, z2, temperature=.004), mean_kernel(z1, gaussian())
    expected = value_and_gradients(all_of, z1, z2)
    with torch.autocast('cpu', half): same(value_and_gradients(all_of, z1, z2), expected, 1e-6)   # the backward pass under it too

def test_functional_transforms():
    z1, z2 = rows(12)
    stacked = torch.stack([z1, z2])
    f = lambda z: mean_kernel(z, gaussian()) + log_repulsion(z, z, temperature=.2).mean()
    assert_close(torch.func.vmap(f)(stacked), torch.stack([f(z1), f(z2)]))
    _, expected = value_and_gradients(f, z1)
    assert_close(torch.func.grad(f)(z1), expected)
    assert_close(torch.func.jvp(f, (z1,), (z2,))[1], (expected*z2).sum())
    assert torch.func.hessian(f)(z1[:3]).isfinite().all()

@pytest.mark.parametrize('loss', [lambda a, b: ntxent(a, b, temperature=.2), lambda a, b: dhel(a, b, temperature=.2), kcl])
def test_compile(loss):
    z1, z2 = rows(20, dtype=torch.float32)
    same(value_and_gradients(torch.compile(loss, backend='aot_eager', fullgraph=True), z1, z2), value_and_gradients(loss, z1, z2), 1e-5)

@pytest.mark.parametrize('tile', [0, -1, 1.5, True, '8'])
def test_bad_tile(tile):
    z, _ = rows(4)
    for f in (lambda: log_repulsion(z, z, temperature=.2, tile=tile), lambda: repulsions(z, z, temperature=.2, tile=tile), lambda: mean_kernel(z, gaussian(), tile=tile)):
        with pytest.raises(ValueError, match='tile must be a whole number >= 1'): f()

def test_nan_stays_visible():
    z, _ = rows(10)
    z[3] = torch.nan
    assert log_repulsion(z, z, temperature=.2).isnan().all() and mean_kernel(z, gaussian()).isnan()


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, '_linear_pointwise'), reason='this PyTorch has no oneDNN')
def test_products_by_onednn(monkeypatch):
    z1, z2 = rows(600, dtype=torch.float32)
    def all_of(z1, z2): return *repulsions(z1, z2, temperature=.2), mean_kernel(z1, gaussian()), mean_kernel(z2, riesz(-1.))
    found = []
    for onednn in (False, True):
        monkeypatch.setattr(pairs, '_ONEDNN', onednn)
        found.append(value_and_gradients(all_of, z1, z2))
    same(*found, 1e-5)

def test_kept_tiles_change_nothing(monkeypatch):
    z1, z2 = rows(300)
    f = lambda *z: repulsions(*z, temperature=.2)
    kept = value_and_gradients(f, z1, z2)
    monkeypatch.setattr(pairs, 'KEPT', 0)
    same(value_and_gradients(f, z1, z2), kept, 1e-13)


LOSSES = dict(ntxent=lambda a, b, T: ntxent(a, b, temperature=T), dcl=lambda a, b, T: dcl(a, b, temperature=T), dhel=lambda a, b, T: dhel(a, b, temperature=T),
              infonce=lambda a, b, T: infonce(a, b, temperature=T), kcl=lambda a, b, T: kcl(a, b, kernel=gaussian(.5/T)))

@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('temperature, limit', [(.2, 1e-6), (.02, 1e-5)])
def test_gradient_error_of_float32(loss, temperature, limit):
    z = [x.float() for x in rows(1500, 128)]
    f = lambda a, b: LOSSES[loss](a, b, temperature)
    _, *got = value_and_gradients(f, *z)
    _, *exact = value_and_gradients(f, *(x.double() for x in z))
    for g, e in zip(got, exact): assert (g - e).norm() <= limit*e.norm(), ((g - e).norm()/e.norm()).item()

MEMORY = """
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from contrastive_nb.kernels import riesz
from contrastive_nb.label_losses import LABEL_LOSSES
from contrastive_nb.losses import LOSSES, MULTIVIEW_LOSSES, kcl, ntxent
class Largest(TorchDispatchMode):
    size = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in (out if isinstance(out, (tuple, list)) else [out]):
            if isinstance(x, torch.Tensor): self.size = max(self.size, x.numel())
        return out
def report(name, loss, *inputs):
    with Largest() as largest: loss(*inputs).backward()
    print(name, largest.size)
B = 1500
views, many, labels = [torch.randn(B, 8, requires_grad=True) for _ in range(2)], torch.randn(2, B, 8, requires_grad=True), torch.arange(B) % 10
given = dict(temperature=.2, n=B)
def make(c): return c(**{p: v for p, v in given.items() if p in c.fn.__kwdefaults__ or p in c.fn.__code__.co_varnames})
for name, c in LOSSES.items(): report(name, make(c), *views)
for name, c in MULTIVIEW_LOSSES.items(): report(name, make(c), many)
for name, c in LABEL_LOSSES.items():
    if name not in ('clop', 'soft_supcon'): report(name, make(c), many, labels)
report('cold', lambda a, b: ntxent(a, b, temperature=.004), *views)
report('steep', lambda a, b: kcl(a, b, kernel=riesz(-1.)), *views)
report('inside', lambda z, y: LABEL_LOSSES['supcon'](temperature=.2, inside=True)(z, y), many, labels)
"""

def test_no_large_matrix():
    "No tensor is larger than a few tiles, forward and backward, where all pairs would be 9 million; `soft_supcon` is given a weight for each pair."
    out = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, check=True)
    sizes = dict(line.split() for line in out.stdout.splitlines())
    assert len(sizes)==26
    for name, size in sizes.items(): assert int(size) <= pairs.STRIP, name
