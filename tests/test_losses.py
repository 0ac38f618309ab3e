"One table of losses drives what every loss must do: refuse what makes no sense, keep the formula's symmetries, stay finite."
import math

import pytest
import torch

from contrastive_nb.kernels import gaussian, make_kernel
from contrastive_nb.losses import LOSSES, dcl, dhel, infonce, kcl, make_loss, ntxent

SOFTMAX = [lambda a, b, T, **k: infonce(a, b, temperature=T, **k), lambda a, b, T, **k: infonce(a, b, temperature=T, symmetric=False, **k),
           lambda a, b, T, **k: ntxent(a, b, temperature=T, **k), lambda a, b, T, **k: dcl(a, b, temperature=T, **k), lambda a, b, T, **k: dcl(a, b, temperature=T, symmetric=False, **k),
           *(lambda a, b, T, views=views, **k: dhel(a, b, temperature=T, views=views, **k) for views in ('both', 'mean', 'first'))]
KERNEL = [lambda a, b, T, kernel=kernel, **k: kcl(a, b, kernel=make_kernel(kernel), **k) for kernel in ('gaussian', 'log', 'imq', 'riesz(s=-1.0)')] + [
    lambda a, b, T, **k: kcl(a, b, kernel=make_kernel('riesz(s=1.0)'), attraction=gaussian(), **k)]
NAMES = ['infonce', 'infonce-one', 'ntxent', 'dcl', 'dcl-one', 'dhel', 'dhel-mean', 'dhel-first', 'kcl-gaussian', 'kcl-log', 'kcl-imq', 'kcl-riesz', 'kcl-gaussian_riesz']
EVERY = pytest.mark.parametrize('loss', SOFTMAX + KERNEL, ids=NAMES)
ONE_SIDED = {'infonce-one', 'dcl-one', 'dhel-first'}


def embeddings(B=8, D=5, seed=0, dtype=torch.float64): return torch.randn(2, B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_grads(loss, z1, z2, T=.2):
    z1, z2 = (z.detach().clone().requires_grad_() for z in (z1, z2))
    value = loss(z1, z2, T)
    value.backward()
    return value.detach(), z1.grad, z2.grad


z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
bad_row = z.clone(); bad_row[2, 1] = math.nan
far_row = z.clone(); far_row[3, 0] = -math.inf


@EVERY
@pytest.mark.parametrize('a, b, text', [
    (z[:1], z[:1], 'a batch of 1 has no negatives, use B >= 2'), (z[:0], z[:0], 'a batch of 0'), (z, z[:3], r'same shape, got \(4, 3\) and \(3, 3\)'),
    (z, z[:, :2], 'same shape'), (z[0], z[0], r'must have shape \(B, D\), got \(3,\)'), (z[None], z[None], r'must have shape \(B, D\), got \(1, 4, 3\)'),
    (z.long(), z.long(), 'must be floating point, got torch.int64'), (z.to(torch.complex64), z.to(torch.complex64), 'floating point, got torch.complex64'),
    (z, z.double(), 'same dtype, got torch.float32 and torch.float64'), (z.numpy(), z, 'must be a tensor, got ndarray'),
    (bad_row, z, 'z1 must be finite, row 2 holds nan'), (z, far_row, 'z2 must be finite, row 3 holds -inf'), (z[:, :0], z[:, :0], 'at least one dimension'),
], ids=['one', 'none', 'B', 'D', '1-D', '3-D', 'integer', 'complex', 'mixed', 'numpy', 'nan', 'inf', 'no-dims'])
def test_bad_embeddings_are_refused(loss, a, b, text):
    with pytest.raises(ValueError, match=text): loss(a, b, .2)


@pytest.mark.parametrize('loss', SOFTMAX, ids=NAMES[:len(SOFTMAX)])
@pytest.mark.parametrize('T', [0, -1., math.nan, math.inf, '0.1', True, None, torch.tensor(-.1), torch.tensor([.1, .2])], ids=str)
def test_bad_temperatures_are_refused(loss, T):
    with pytest.raises(ValueError, match='temperature must'): loss(z, z, T)


@pytest.mark.parametrize('gamma', [0, -1, math.nan, 'big', True])
def test_bad_gammas_are_refused(gamma):
    with pytest.raises(ValueError, match='gamma must be a number > 0'): kcl(z, -z, gamma=gamma)


@EVERY
def test_validation_can_be_skipped_but_never_hides_a_nan(loss): assert not loss(bad_row, z, .2, validate=False).isfinite()


@EVERY
def test_symmetries(loss, request):
    z1, z2 = embeddings()
    value, g1, g2 = value_and_grads(loss, z1, z2)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(z1[order], z2[order], .2), value)
    Q = torch.linalg.qr(embeddings(5, 5, seed=2)[0])[0]
    torch.testing.assert_close(loss(z1@Q, z2@Q, .2), value)
    swapped = loss(z2, z1, .2)
    if request.node.callspec.id in ONE_SIDED: assert abs(swapped - value) > 1e-6
    else: torch.testing.assert_close(swapped, value)
    for z, g in ((z1, g1), (z2, g2)): torch.testing.assert_close((z*g).sum(1), torch.zeros(8, dtype=torch.float64))   # tangent to the sphere
    turn = z1.T@g1 + z2.T@g2
    torch.testing.assert_close(turn, turn.T)   # no gain from rotating both views together


@EVERY
def test_gradient_is_the_slope(loss):
    z1, z2 = embeddings(5, 4)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, .3), (z1.requires_grad_(), z2.requires_grad_()))


@EVERY
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('T', [.01, .1, 1.])
def test_half_precision_and_autocast_agree_with_float64(loss, dtype, T):
    z1, z2 = embeddings(64, 16, dtype=dtype)
    exact, e1, e2 = value_and_grads(loss, z1.double(), z2.double(), T)
    lowered = torch.bfloat16 if dtype==torch.float32 else dtype
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    with torch.autocast('cpu', dtype=lowered): value = loss(z1, z2, T)
    g1, g2 = torch.autograd.grad(value, (z1, z2))
    assert value.dtype==torch.float32 and g1.dtype==dtype
    tolerance = 1e-5 if dtype==torch.float32 else 1e-2
    assert abs(value - exact) <= tolerance*max(1, abs(exact))
    for g, e in ((g1, e1), (g2, e2)): assert (g.double() - e).abs().max() <= max(tolerance, 1e-4)*e.abs().max()


@EVERY
@pytest.mark.parametrize('make', [lambda: torch.zeros(4, 3).index_fill(0, torch.tensor([1, 2, 3]), 1.), lambda: torch.ones(4, 3), lambda: torch.eye(2),
                                  lambda: 1e-30*torch.eye(3), lambda: 1e30*torch.eye(3)], ids=['zero-row', 'identical', 'two', 'tiny', 'huge'])
def test_hard_batches_stay_finite(loss, make):
    z1 = make(); z2 = -z1.flip(1)   # antipodal or orthogonal partners; no two positives coincide
    if 'gaussian_riesz' in str(loss) or (z1.shape==(4, 3) and loss is KERNEL[-1]):   # its energy has a pole where rows of a view coincide
        with pytest.raises(ValueError, match='two rows of one view coincide, where riesz'): loss(z1, z2, .2)
        return
    for got in value_and_grads(loss, z1, z2, .05): assert got.isfinite().all()


@EVERY
def test_identical_views(loss):
    z1 = embeddings()[0]
    for got in value_and_grads(loss, z1, z1): assert got.isfinite().all()


@EVERY
def test_tiny_temperature_on_a_collapsed_batch(loss):
    z1 = torch.ones(64, 16) + 1e-3*embeddings(64, 16, dtype=torch.float32)[0]
    for got in value_and_grads(loss, z1, z1.roll(1, 0), .005): assert got.isfinite().all()


@EVERY
def test_strided_and_expanded_inputs(loss):
    z1, z2 = embeddings()
    torch.testing.assert_close(loss(z1.T.contiguous().T, z2.repeat(1, 2)[:, :5], .2), loss(z1, z2, .2))


@EVERY
def test_a_view_without_gradient(loss):
    z1, z2 = embeddings()
    _, g1, _ = value_and_grads(loss, z1, z2)
    z1 = z1.requires_grad_()
    loss(z1, z2, .2).backward()
    torch.testing.assert_close(z1.grad, g1)
    with torch.inference_mode(): assert loss(z1, z2, .2).isfinite()


def test_the_registry_names_its_losses():
    for name in LOSSES: assert make_loss(name, **({} if name=='kcl' else dict(temperature=.2))).fn.__name__==name
