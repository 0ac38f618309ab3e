"One table of losses drives what every loss must do: refuse what makes no sense, keep the formula's symmetries, stay finite."
import copy
import math
from dataclasses import dataclass

import pytest
import torch

from contrastive_nb import pairs
from contrastive_nb.kernels import gaussian, imq, make_kernel, riesz
from contrastive_nb.label_losses import CLOP, LABEL_LOSSES, ByLabel, SupCon, clop, dscl, nscl, orthonormal_prototypes, relu_scl, soft_supcon, supcon
from contrastive_nb.losses import (DHEL, LOSSES, MULTIVIEW_LOSSES, InfoNCE, NTXent, Pairwise, Sum, VRNS, ainfonce, align_uniform, barlow, cacr, dcl, dclw, dhel, energy, infonce, kcl, make_loss,
                                   mv_dhel, mv_infonce, ntxent, pvc, siglip, spectral, ssge, vicreg, vrns)


@dataclass
class Case:
    "A loss as `call(z1, z2, T)`, and what it does not share with the others."
    id:str
    call:object
    stacked:bool=False       # takes views stacked: other messages at the border
    temperature:bool=True    # has one
    one_sided:bool=False     # swapping views changes it
    raw:bool=False           # rows count with their length, and may overflow
    turns:bool=True          # rotating both views changes nothing
    slope:bool=True          # its gradient is the slope of its value: no stop-gradient
    attracts:bool=True       # its value depends on who is paired with whom

    def __call__(self, a, b, T, **k): return self.call(a, b, **({'temperature': T} if self.temperature else {}), **k)


def fixed(fn, **params): return lambda a, b, **k: fn(a, b, **params, **k)
def stacked(fn, **params): return lambda a, b, **k: fn(torch.stack([a, b]), **params, **k)
def three(fn, **params):
    def call(a, b, **k):
        if a.itemsize==2: a, b = a.float(), b.float()   # half precision would round the sum of a's two gradients
        return fn(torch.stack([a, b, -a]), **params, **k)
    return call
def paired(B): return torch.arange(B)//2   # classes of two images
def with_labels(fn, V=2, **params): return lambda a, b, **k: fn(torch.stack([a, b][:V]), paired(len(a)), **params, **k)


CASES = [
    Case('infonce', infonce), Case('infonce-one', fixed(infonce, symmetric=False), one_sided=True), Case('ntxent', ntxent),
    Case('dcl', dcl), Case('dcl-one', fixed(dcl, symmetric=False), one_sided=True), Case('dclw', dclw, slope=False),
    Case('dclw-weights', fixed(dclw, detach_weights=False)), Case('dclw-one', fixed(dclw, detach_weights=False, symmetric=False), one_sided=True),
    Case('dhel', dhel), Case('dhel-mean', fixed(dhel, views='mean')), Case('dhel-first', fixed(dhel, views='first'), one_sided=True),
    *(Case(f'kcl-{kernel}', fixed(kcl, kernel=make_kernel(kernel)), temperature=False) for kernel in ('gaussian', 'log', 'imq', 'riesz(s=-1.0)')),
    Case('kcl-gaussian_riesz', fixed(kcl, kernel=make_kernel('riesz(s=1.0)'), attraction=gaussian()), temperature=False),
    Case('energy', energy, temperature=False, attracts=False), Case('energy-log', fixed(energy, log=True), temperature=False, attracts=False),
    Case('energy-log-imq', fixed(energy, kernel=make_kernel('imq'), log=True), temperature=False, attracts=False),
    Case('align_uniform', align_uniform, temperature=False), Case('align_uniform-1', fixed(align_uniform, alpha=1., t=20.), temperature=False),
    Case('spectral', spectral, temperature=False, raw=True), Case('spectral-unit', fixed(spectral, normalize=True), temperature=False),
    Case('siglip', siglip, temperature=False), Case('siglip-0', fixed(siglip, scale=20., bias=0.), temperature=False),
    Case('vicreg', vicreg, temperature=False, raw=True, turns=False), Case('barlow', barlow, temperature=False, raw=True, turns=False),
    Case('ssge', ssge, temperature=False, raw=True, turns=False), Case('ssge-kl', fixed(ssge, divergence='kl'), temperature=False, raw=True, turns=False),
    Case('vrns', fixed(vrns, n=50), temperature=False),
    Case('mv_infonce', stacked(mv_infonce), stacked=True), Case('mv_infonce-cross', three(mv_infonce, negatives='cross'), stacked=True, one_sided=True),
    Case('mv_dhel', three(mv_dhel), stacked=True, one_sided=True), Case('pvc', stacked(pvc), stacked=True),
    Case('cacr', stacked(cacr), stacked=True, temperature=False, one_sided=True), Case('cacr-symmetric', stacked(cacr, symmetric=True), stacked=True, temperature=False),
    Case('cacr-3', three(cacr, tau_neg=3.), stacked=True, temperature=False, one_sided=True),
    Case('ainfonce', stacked(ainfonce), stacked=True, one_sided=True, slope=False), Case('ainfonce-3', three(ainfonce), stacked=True, one_sided=True, slope=False),
    Case('ainfonce-hard', three(ainfonce, beta=1.), stacked=True, one_sided=True, slope=False), Case('ainfonce-all', three(ainfonce, detach='all'), stacked=True, one_sided=True, slope=False),
    Case('supcon', with_labels(supcon), stacked=True), Case('supcon-inside', with_labels(supcon, inside=True), stacked=True),
    Case('supcon-first', with_labels(supcon, anchors='first'), stacked=True, one_sided=True),
    Case('relu_scl', with_labels(relu_scl), stacked=True, turns=False),
    Case('soft_supcon', lambda a, b, **k: soft_supcon(torch.stack([a, b]), torch.cat([paired(len(a))]*2)[:, None]==torch.cat([paired(len(a))]*2), **k), stacked=True),
    Case('nscl', with_labels(nscl), stacked=True), Case('nscl-positive', with_labels(nscl, positive_in_denominator=True, self_pairs=True), stacked=True),
    Case('dscl', with_labels(dscl), stacked=True, one_sided=True),
    *(Case(f'clop-{d}', with_labels(lambda z, y, d=d, **k: clop(z, y % z.shape[2], torch.eye(z.shape[2]), distance=d, **k)), stacked=True, temperature=False, turns=False) for d in ('cos', 'l2', 'l1')),
]
EVERY = pytest.mark.parametrize('loss', CASES, ids=lambda c: c.id)
TWO_VIEWS = pytest.mark.parametrize('loss', [c for c in CASES if not c.stacked], ids=lambda c: c.id)
def clop_eye(z, **k): return clop(z, torch.arange(4) % 3, torch.eye(3), **k)
STACKED = pytest.mark.parametrize('loss', [mv_infonce, mv_dhel, pvc, cacr, ainfonce, supcon, relu_scl, nscl, lambda z, **k: dscl(z, torch.arange(4), **k),
                                           lambda z, **k: soft_supcon(z, torch.eye(8), **k), clop_eye],
                                  ids=['mv_infonce', 'mv_dhel', 'pvc', 'cacr', 'ainfonce', 'supcon', 'relu_scl', 'nscl', 'dscl', 'soft_supcon', 'clop'])


def embeddings(B=8, D=5, seed=0, dtype=torch.float64): return torch.randn(2, B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def with_temperature(loss): return {} if loss in (cacr, clop_eye) else dict(temperature=.2)


def value_and_grads(loss, z1, z2, T=.2):
    z1, z2 = (z.detach().clone().requires_grad_() for z in (z1, z2))
    value = loss(z1, z2, T)
    value.backward()
    return value.detach(), z1.grad, torch.zeros_like(z2) if z2.grad is None else z2.grad


z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
bad_row = z.clone(); bad_row[2, 1] = math.nan
far_row = z.clone(); far_row[3, 0] = -math.inf


@TWO_VIEWS
@pytest.mark.parametrize('a, b, text', [
    (z[:1], z[:1], 'a batch of 1 has no negatives, use B >= 2'), (z[:0], z[:0], 'a batch of 0'), (z, z[:3], r'same shape, got \(4, 3\) and \(3, 3\)'),
    (z, z[:, :2], 'same shape'), (z[0], z[0], r'must have shape \(B, D\), got \(3,\)'), (z[None], z[None], r'must have shape \(B, D\), got \(1, 4, 3\)'),
    (z.long(), z.long(), 'must be floating point, got torch.int64'), (z.to(torch.complex64), z.to(torch.complex64), 'floating point, got torch.complex64'),
    (z, z.double(), 'same dtype, got torch.float32 and torch.float64'), (z.numpy(), z, 'must be a tensor, got ndarray'),
    (bad_row, z, 'z1 must be finite, row 2 holds nan'), (z, far_row, 'z2 must be finite, row 3 holds -inf'), (z[:, :0], z[:, :0], 'at least one dimension'),
], ids=['one', 'none', 'B', 'D', '1-D', '3-D', 'integer', 'complex', 'mixed', 'numpy', 'nan', 'inf', 'no-dims'])
def test_bad_embeddings_are_refused(loss, a, b, text):
    with pytest.raises(ValueError, match=text): loss(a, b, .2)


@STACKED
@pytest.mark.parametrize('bad, text', [
    (z, r'z must have shape \(V, B, D\), got \(4, 3\)'), (z[0], r'z must have shape \(V, B, D\), got \(3,\)'), (z[None, None], r'z must have shape \(V, B, D\)'), (z.numpy(), 'z must'),
    (torch.stack([z, z]).long(), 'must be floating point, got torch.int64'), (torch.stack([z, z]).to(torch.complex64), 'must be floating point, got torch.complex64'),
    (torch.stack([z, bad_row]), r'must be finite, row (2|6) holds nan'), (torch.stack([far_row, z]), 'must be finite, row 3 holds -inf'),
], ids=['2-D', '1-D', '4-D', 'numpy', 'integer', 'complex', 'nan', 'inf'])
def test_bad_stacks_are_refused(loss, bad, text):
    with pytest.raises(ValueError, match=text): loss(bad, **with_temperature(loss))


@pytest.mark.parametrize('loss', [mv_infonce, mv_dhel, pvc, cacr, ainfonce, nscl, Pairwise(InfoNCE(temperature=.2))], ids=lambda f: getattr(f, '__name__', 'pairwise'))
def test_few_and_many_views(loss):
    params = {} if isinstance(loss, Pairwise) else with_temperature(loss)
    with pytest.raises(ValueError, match='V >= 2'): loss(z[None], **params)
    with pytest.raises(ValueError, match='a batch of 1|needs two classes'): loss(torch.stack([z, z])[:, :1], **params)
    assert loss(torch.randn(12, 4, 3), **params).isfinite()


@pytest.mark.parametrize('loss', [c for c in CASES if c.temperature], ids=lambda c: c.id)
@pytest.mark.parametrize('T', [0, -1., math.nan, math.inf, '0.1', True, None, torch.tensor(-.1), torch.tensor([.1, .2])], ids=str)
def test_bad_temperatures_are_refused(loss, T):
    with pytest.raises(ValueError, match='temperature must'): loss(z, z, T)


@pytest.mark.parametrize('gamma', [0, -1, math.nan, 'big', True])
def test_bad_gammas_are_refused(gamma):
    with pytest.raises(ValueError, match='gamma must be a number > 0'): kcl(z, -z, gamma=gamma)


POSITIVE = [(fixed(dclw, temperature=.2), 'sigma'), (align_uniform, 'alpha'), (align_uniform, 't'), (align_uniform, 'lam'), (spectral, 'mu'), (siglip, 'scale'), (vicreg, 'eps'),
            (barlow, 'scale'), (barlow, 'eps'), (stacked(ainfonce, temperature=.2), 'beta'), (with_labels(supcon, temperature=.2), 'base_temperature')]
NOT_NEGATIVE = [(vicreg, 'invariance'), (vicreg, 'variance'), (vicreg, 'covariance'), (barlow, 'lam'), (ssge, 'lam'), (stacked(cacr), 'alpha'), (stacked(cacr), 'beta'), (stacked(cacr), 'tau_pos'),
                (stacked(cacr), 'tau_neg'), (stacked(ainfonce, temperature=.2), 'adv_weight'), (stacked(ainfonce, temperature=.2), 'degree'), (stacked(ainfonce, temperature=.2, beta=1.), 'tau_plus'),
                (with_labels(dscl, temperature=.2), 'beta'), (with_labels(lambda z, y, **k: clop(z, y, torch.eye(3), **k)), 'lam')]
CHOICES = [(vicreg, 'hinges'), (ssge, 'divergence'), (stacked(mv_infonce, temperature=.2), 'negatives'), (stacked(ainfonce, temperature=.2), 'detach'),
           (with_labels(supcon, temperature=.2), 'anchors'), (with_labels(lambda z, y, **k: clop(z, y, torch.eye(3), **k)), 'distance')]


@pytest.mark.parametrize('loss, name', POSITIVE + NOT_NEGATIVE, ids=lambda x: x if isinstance(x, str) else '')
def test_parameters_may_be_tensors_of_one_element_and_are_differentiated(loss, name, monkeypatch):
    monkeypatch.setattr(pairs, 'STRIP', 1)
    z1, z2 = embeddings(130 if name in ('tau_neg', 'scale') else 4, 3)   # in strips
    def value(x): return loss(z1, z2, **{name: x})
    x, h = torch.tensor([.4], dtype=torch.float64, requires_grad=True), 1e-4
    assert value(x).shape==()
    slope, = torch.autograd.grad(value(x), x)
    torch.testing.assert_close(slope.item(), (value(.4 + h) - value(.4 - h)).item()/(2*h), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('loss, name', POSITIVE + NOT_NEGATIVE, ids=lambda x: x if isinstance(x, str) else '')
@pytest.mark.parametrize('value', [-1, math.nan, math.inf, '1', True], ids=str)
def test_bad_parameters_are_refused(loss, name, value):
    with pytest.raises(ValueError, match=f'{name} must'): loss(z, -z, **{name: value})


@pytest.mark.parametrize('loss, name', POSITIVE, ids=lambda x: x if isinstance(x, str) else '')
def test_zero_is_refused_where_it_makes_no_sense(loss, name):
    with pytest.raises(ValueError, match=f'{name} must be a number > 0, got 0'): loss(z, -z, **{name: 0})


@pytest.mark.parametrize('loss, name', CHOICES, ids=lambda x: x if isinstance(x, str) else '')
def test_unknown_choices_are_refused(loss, name):
    with pytest.raises(ValueError, match=f"{name} must be .*, got 'other'"): loss(z, -z, **{name: 'other'})


@pytest.mark.parametrize('n', [1, 0, -3, 2.5, True, None, '10'])
def test_vrns_needs_a_number_of_images(n):
    with pytest.raises(ValueError, match='n must be an integer >= 2'): vrns(z, z, n=n)


@EVERY
def test_validation_can_be_skipped_but_never_hides_a_nan(loss): assert not loss(bad_row, z, .2, validate=False).isfinite()


@EVERY
def test_symmetries(loss):
    z1, z2 = embeddings()
    value, g1, g2 = value_and_grads(loss, z1, z2)
    order = torch.tensor([3, 2, 6, 7, 0, 1, 4, 5])   # classes of two stay together
    if not loss.id.startswith('clop'): torch.testing.assert_close(loss(z1[order], z2[order], .2), value)   # its prototypes would have to move along
    Q = torch.linalg.qr(embeddings(5, 5, seed=2)[0])[0]
    turned = loss(z1@Q, z2@Q, .2)
    if loss.turns: torch.testing.assert_close(turned, value)
    else: assert abs(turned - value) > 1e-6
    swapped = loss(z2, z1, .2)
    if loss.one_sided: assert abs(swapped - value) > 1e-6
    else: torch.testing.assert_close(swapped, value)
    again = loss(z1, z2[order], .2)
    assert abs(again - value) > 1e-6 if loss.attracts else abs(again - value) < 1e-9
    if loss.raw: return
    for z, g in ((z1, g1), (z2, g2)): torch.testing.assert_close((z*g).sum(1), torch.zeros(8, dtype=torch.float64))   # tangent to the sphere
    turn = z1.T@g1 + z2.T@g2
    if loss.turns and loss.slope: torch.testing.assert_close(turn, turn.T)   # no gain from rotating both views together


@pytest.mark.parametrize('loss', [vicreg, barlow, ssge])
def test_a_common_shift_is_nothing_to_column_losses(loss):
    z1, z2 = embeddings()
    torch.testing.assert_close(loss(z1 + 3, z2 + 3), loss(z1, z2))


@pytest.mark.parametrize('loss', [c for c in CASES if c.slope], ids=lambda c: c.id)
def test_gradient_is_the_slope(loss):
    z1, z2 = embeddings(6, 4)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, .3), (z1.requires_grad_(), z2.requires_grad_()))


@pytest.mark.parametrize('name', ['dclw', 'ainfonce'])
def test_stop_gradients_leave_the_value(name):
    z1, z2 = embeddings()
    if name=='dclw': torch.testing.assert_close(dclw(z1, z2, temperature=.2), dclw(z1, z2, temperature=.2, detach_weights=False))
    else: torch.testing.assert_close(ainfonce(torch.stack([z1, z2, z1 - z2]), temperature=.2), ainfonce(torch.stack([z1, z2, z1 - z2]), temperature=.2, detach='all'))


@EVERY
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('T', [.01, .1, 1.])
def test_half_precision_and_autocast_agree_with_float64(loss, dtype, T):
    if T!=.1 and not loss.temperature: return
    z1, z2 = embeddings(64, 16, dtype=dtype)
    exact, e1, e2 = value_and_grads(loss, z1.double(), z2.double(), T)
    lowered = torch.bfloat16 if dtype==torch.float32 else dtype
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    with torch.autocast('cpu', dtype=lowered): value = loss(z1, z2, T)
    g1, g2 = torch.autograd.grad(value, (z1, z2), allow_unused=True, materialize_grads=True)
    assert value.dtype==torch.float32 and g1.dtype==dtype
    tolerance = 1e-5 if dtype==torch.float32 else 1e-2
    assert abs(value - exact) <= tolerance*max(1, abs(exact))
    for g, e in ((g1, e1), (g2, e2)): assert (g.double() - e).abs().max() <= max(tolerance, 1e-4)*e.abs().max()


@EVERY
@pytest.mark.parametrize('make', [lambda: torch.zeros(4, 3).index_fill(0, torch.tensor([1, 2, 3]), 1.), lambda: torch.ones(4, 3), lambda: torch.eye(2),
                                  lambda: 1e-30*torch.eye(3), lambda: 1e30*torch.eye(3)], ids=['zero-row', 'identical', 'two', 'tiny', 'huge'])
def test_hard_batches_stay_finite(loss, make):
    z1 = make(); z2 = -z1.flip(1)   # antipodal or orthogonal partners; no two positives coincide
    if loss.id=='kcl-gaussian_riesz' and z1.shape==(4, 3):   # its energy has a pole where rows of a view coincide
        with pytest.raises(ValueError, match='two rows of one view coincide or nearly so, where riesz'): loss(z1, z2, .2)
        return
    if 'nscl' in loss.id and len(z1)==2: z1, z2 = (torch.cat([z, z.flip(0)]) for z in (z1, z2))   # two classes
    if loss.id in ('vicreg', 'barlow') and z1.max()>1e20: return   # unnormalised squares of 1e30 leave float32
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


@EVERY
def test_batches_of_batches_by_vmap(loss):
    z1, z2 = embeddings()
    values = torch.vmap(lambda a, b: loss(a, b, .3, validate=False))(torch.stack([z1, z2]), torch.stack([z2, z1]))
    torch.testing.assert_close(values, torch.stack([loss(z1, z2, .3), loss(z2, z1, .3)]))


@EVERY
def test_one_graph_by_compile(loss):
    torch._dynamo.reset()
    z1, z2 = embeddings()
    torch.testing.assert_close(torch.compile(lambda a, b: loss(a, b, .3), backend='eager', fullgraph=True)(z1, z2), loss(z1, z2, .3))


@pytest.mark.parametrize('loss', [c for c in CASES if c.temperature], ids=lambda c: c.id)
def test_the_temperature_can_be_learnt(loss):
    z1, z2 = embeddings()
    T = torch.tensor(.3, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(loss(z1, z2, T), T)
    torch.testing.assert_close(slope, (loss(z1, z2, .3 + 1e-6) - loss(z1, z2, .3 - 1e-6))/2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('loss', [lambda z, y: supcon(z, y, temperature=.2), lambda z, y: supcon(z, y, temperature=.2, inside=True), lambda z, y: supcon(z, y, temperature=.2, singletons='skip'),
                                  lambda z, y: relu_scl(z, y, temperature=.2), lambda z, y: dscl(z, y, temperature=.2), lambda z, y: nscl(z, y, temperature=.2)],
                         ids=['supcon', 'supcon-inside', 'supcon-skip', 'relu_scl', 'dscl', 'nscl'])
def test_labels_are_names(loss):
    z, y = embeddings(8, 5).requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    value = loss(z, y)
    for other in (-y, 1000*y - 7, y.to(torch.int8), y.to(torch.uint8), y.flip(0)): assert loss(z, other).isfinite()
    for other in (-y, 1000*y - 7, y.to(torch.int8), y.to(torch.uint8), 3 - y): torch.testing.assert_close(loss(z, other), value)
    for alone in (torch.arange(8), torch.tensor([0]*7 + [1])):   # all classes different; nearly one
        grad, = torch.autograd.grad(loss(z, alone), z)
        assert grad.isfinite().all()


def test_one_class_is_refused_by_nscl_alone():
    z, y = embeddings(8, 5), torch.zeros(8, dtype=torch.long)
    assert supcon(z, y, temperature=.2).isfinite() and dscl(z, y, temperature=.2).isfinite()
    with pytest.raises(ValueError, match='nscl: needs two classes'): nscl(z, y, temperature=.2)


def test_anchors_without_positives_have_finite_gradients():
    for params in ({}, dict(inside=True), dict(singletons='skip')):
        z = embeddings()[:1].clone().requires_grad_()
        supcon(z, torch.arange(8), temperature=.2, **params).backward()
        assert (z.grad==0).all()


def test_prototypes_are_orthonormal_and_come_from_a_generator():
    P = orthonormal_prototypes(10, 64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(P@P.T, torch.eye(10))
    torch.testing.assert_close(P, orthonormal_prototypes(10, 64, torch.Generator().manual_seed(0)))


def test_a_sum_adds_gradients():
    z1, z2 = embeddings()
    _, g, _ = value_and_grads(lambda a, b, T: Sum(InfoNCE(temperature=T), VRNS(n=50), weights=(1., 30.))(a, b), z1, z2)
    _, a, _ = value_and_grads(lambda a, b, T: infonce(a, b, temperature=T), z1, z2)
    _, b, _ = value_and_grads(lambda a, b, T: vrns(a, b, n=50), z1, z2)
    torch.testing.assert_close(g, a + 30*b)


NEEDED = dict(vrns=dict(n=50))   # beside the temperature

@pytest.mark.parametrize('registry', [LOSSES, MULTIVIEW_LOSSES, LABEL_LOSSES], ids=['two', 'many', 'labels'])
def test_the_registries_name_their_losses_and_the_table_holds_them_all(registry):
    for name, kind in registry.items():
        try: loss = make_loss(name, registry=registry, temperature=.2)
        except ValueError: loss = make_loss(name, registry=registry, **NEEDED.get(name, {}))
        assert loss.fn.__name__==name and loss.label.startswith(name) and loss(*kind.example).isfinite()
        assert any(c.id.split('-')[0]==name for c in CASES), f'{name} is not in the table'


def test_covariances_beside_a_large_variance():
    z = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))   # more columns than rows
    z[:, 0] *= 1000
    torch.testing.assert_close(vicreg(z, z).double(), vicreg(z.double(), z.double()), rtol=1e-6, atol=0)
    column = torch.zeros(4, 8)
    column[:, 0] = torch.tensor([100., -37., 12., 5.3])
    assert 0<=vicreg(column, column, invariance=0., variance=0.)<1e-6
    torch.testing.assert_close(barlow(1e20*z, -1e20*z), barlow(z.double(), -z.double(), eps=1e-40).float(), rtol=1e-4, atol=0)


def test_soft_positives_do_not_look_at_the_diagonal_or_at_the_scale_of_a_row():
    z1, z2 = embeddings(5, 3, dtype=torch.float32)
    z, w = torch.stack([z1, z2]), torch.rand(10, 10, generator=torch.Generator().manual_seed(1))
    want = soft_supcon(z, w.fill_diagonal_(0), temperature=.1)
    for d in (1e8, math.inf, math.nan, -1.): assert soft_supcon(z, w.clone().fill_diagonal_(d), temperature=.1)==want
    for scale in (3e38, 1e-38): torch.testing.assert_close(soft_supcon(z, w*scale, temperature=.1), want)
    with pytest.raises(ValueError, match='finite weights'): soft_supcon(z, w.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(math.inf)), temperature=.1)


def test_log_energy_of_narrow_kernels():
    for t in (60., 1e4): assert math.isclose(energy(torch.eye(2), torch.eye(2), kernel=gaussian(t), log=True), -2*t, rel_tol=1e-6)
    for kernel in (imq(1e-3), riesz(300.)): assert energy(torch.eye(2), -torch.eye(2), kernel=kernel, log=True)<0
    for kernel in (riesz(-1.), make_kernel('log')):
        with pytest.raises(ValueError, match='log needs a kernel of positive values'): energy(z, -z, kernel=kernel, log=True)


def test_learnt_parameters_belong_to_the_module():
    loss = LOSSES['siglip'](scale=torch.nn.Parameter(torch.tensor(10.)), bias=torch.nn.Parameter(torch.tensor(-10.)))
    assert set(loss.state_dict())=={'scale', 'bias'} and len(list(loss.parameters()))==2
    other = LOSSES['siglip'](scale=torch.nn.Parameter(torch.tensor(1.)), bias=torch.nn.Parameter(torch.tensor(0.)))
    other.load_state_dict(loss.state_dict())
    assert other(z, -z)==loss(z, -z)==siglip(z, -z)
    loss(z, -z).backward()
    assert loss.scale.grad!=0 and loss.bias.grad!=0


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['infonce', 'mv_infonce'])
def test_gradients_compiled_in_few_dimensions(loss):
    "The default compiler of PyTorch 2.13 takes the gradient of a log-softmax both ways, stacked, for another one where D <= 4."
    fn = dict(infonce=lambda a, b: infonce(a, b, temperature=.3), mv_infonce=lambda a, b: mv_infonce(torch.stack([a, b]), temperature=.3, negatives='cross'))[loss]
    x = [v.float().requires_grad_() for v in torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))]
    for compiled, plain in zip(torch.autograd.grad(torch.compile(fn, fullgraph=True)(*x), x), torch.autograd.grad(fn(*x), x)): torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


def test_a_number_may_change_between_calls_of_a_graph():
    loss = torch.compile(lambda a, b, T: ntxent(a, b, temperature=T), backend='eager', fullgraph=True)
    for T in (.3, .2, .1): torch.testing.assert_close(loss(z, -z, T), ntxent(z, -z, temperature=T))


def test_losses_look_at_nothing_under_vmap():
    both, other = torch.stack([z, -z]), z.roll(1, 0)
    for loss in (lambda a: ntxent(a, other, temperature=.3), lambda a: kcl(a, other, kernel=riesz(1.)), lambda a: energy(a, other, kernel=riesz(1.)), lambda a: nscl(torch.stack([a, other]), torch.arange(len(z)), temperature=.3)):
        torch.testing.assert_close(torch.vmap(loss)(both), torch.stack([loss(a) for a in both]))


def test_a_constant_column_far_from_zero_is_no_column():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 64, 4, generator=g)
    a[:, 0] = b[:, 0] = 0
    far = torch.tensor([1e5 + .3, 0, 0, 0])
    torch.testing.assert_close(barlow(a + far, b + far), barlow(a, b))


def test_a_sum_hands_each_loss_what_it_takes():
    labels, P = torch.tensor([0, 0, 1, 1]), torch.eye(4, z.shape[1], dtype=z.dtype)
    rows = torch.cat([z[:4], -z[:4]])
    views = rows.view(2, 4, -1)
    both = Sum(SupCon(temperature=.1), CLOP())
    assert both.split==(1, 0, None) and both(views, labels, P)==supcon(views, labels, temperature=.1) + clop(views, labels, P)
    twice = torch.arange(4).repeat(2)
    flat = Sum(ByLabel(NTXent(temperature=.1)), ByLabel(CLOP()), weights=(1, 2))
    assert flat.label=='ntxent(temperature=0.1) + 2*clop(lam=1.0)'
    torch.testing.assert_close(flat(rows, twice, P), ntxent(*views, temperature=.1) + 2*clop(rows[None], twice, P))
    assert Sum(Sum(NTXent(temperature=.1), VRNS(n=10)), DHEL(temperature=.3), weights=(2, 3)).label=='2*(ntxent(temperature=0.1) + vrns(n=10)) + 3*dhel(temperature=0.3)'
    with pytest.raises(ValueError, match='all losses must take the same inputs, got SupCon'): Sum(NTXent(temperature=.1), SupCon(temperature=.1))


def test_kernels_written_as_calls():
    assert make_loss('kcl', kernel='gaussian_riesz(s=1.)').label==make_loss('kcl', kernel='gaussian_riesz', s=1.).label=='kcl(kernel=riesz(s=1.0), gamma=16.0, attraction=gaussian(t=2.0))'
    with pytest.raises(ValueError, match='gaussian: t is given twice'): make_loss('kcl', kernel='gaussian(t=2.)', t=3.)


def test_a_temperature_to_learn_starts_where_it_may_be():
    with pytest.raises(ValueError, match='a temperature to learn must be at least 0.01, got 0.001'): NTXent(temperature=.001, learn_temperature=True)


class Bell(torch.nn.Module):
    "A kernel with a width to learn."
    def __init__(self):
        super().__init__()
        self.t = torch.nn.Parameter(torch.tensor(2.))
    def forward(self, d2): return (-self.t*d2).exp()


@pytest.mark.parametrize('kernel, name', [(lambda: gaussian(torch.nn.Parameter(torch.tensor(2.))), 'kernel_t'), (Bell, 'kernel.t')], ids=['field', 'module'])
def test_a_kernel_may_learn(kernel, name):
    loss = copy.deepcopy(LOSSES['kcl'](kernel=kernel()))
    (found, t), = loss.named_parameters()
    assert found==name and 'Parameter' not in loss.label
    loss(z, -z).backward()
    assert t.grad!=0
    before = loss(z, -z).item()
    loss.load_state_dict({name: torch.tensor(.5)})
    assert loss(z, -z).item()!=before and loss(z, -z).item()==pytest.approx(kcl(z, -z, kernel=gaussian(.5)).item(), rel=1e-6)
    with torch.no_grad(): assert loss(z, -z).item()==pytest.approx(kcl(z, -z, kernel=gaussian(.5)).item(), rel=1e-6)


def test_switches_are_true_or_false():
    with pytest.raises(ValueError, match="symmetric must be True or False, got 'no'"): make_loss('infonce', temperature=.2, symmetric='no')
