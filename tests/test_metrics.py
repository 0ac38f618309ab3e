"""Measures and probes: every number of the theory, every bad input, both precisions, memory, and a GPU where there is one."""
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench import COUNTS, memory
from contrastive_nb import metrics, probe
from contrastive_nb.kernels import gaussian, imq, log, riesz
from contrastive_nb.sphere import cosine_cdf, cosine_quantile, cross_polytope, log_mean_exp_cosine, simplex, uniform_points, unit

HERE = Path(__file__).parent
def seeded(seed=0): return torch.Generator().manual_seed(seed)
def randn(*shape, seed=0): return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)
def circle(M): return torch.stack([(2*math.pi*torch.arange(M).double()/M).cos(), (2*math.pi*torch.arange(M).double()/M).sin()], 1)
def negatives(z): return metrics.cosine_stats(z, z)

two_batches_orthogonal = torch.block_diag(simplex(4), simplex(4))   # n=8 in batches of m=4, each a simplex of its own
two_batches_same = simplex(4).repeat(2, 1)
two_points = torch.tensor([[1., 0.], [-1., 0.]]), unit(torch.tensor([[1., .7], [-1., .7]]))   # u-v is a constant, not zero

NUMBERS = {   # name: (function, expected value, tolerance)
    **{f'Wasserstein, simplex, M={M}': (lambda M=M: metrics.wasserstein_uniformity(simplex(M)), v, 1e-9) for M, v in ((4, 5/9), (9, .3068385445))},
    **{f'Wasserstein, cross-polytope, D={D}': (lambda D=D: metrics.wasserstein_uniformity(cross_polytope(D)), v, 6e-9)
       for D, v in ((2, .41862421), (3, .38), (8, .27066063), (128, .07255006))},
    **{f'Wasserstein, collapse, D={D}': (lambda D=D: metrics.wasserstein_uniformity(torch.ones(5, D)), 1., 2e-8) for D in (2, 3, 128, 4096)},
    **{f'uniformity, simplex, M={M}': (lambda M=M: metrics.uniformity(simplex(M)), -2*2*M/(M-1), 1e-12) for M in (2, 5, 33)},
    **{f'uniformity, floor, D={D}': (lambda D=D: math.log(metrics.uniform_energy(gaussian(2.), D)), v, 6e-7)
       for D, v in ((2, -1.575027), (3, -2.079777), (8, -3.082527), (64, -3.875236), (128, -3.937530), (512, -3.984375), (2048, -3.996094))},
    **{f'limit of DHEL, D={D}': (lambda D=D, T=T: -1/T + log_mean_exp_cosine(1/T, D), v, 6e-7)
       for D, T, v in ((3, .5, -1.404780), (16, .2, -4.249543), (128, .1, -9.610540))},
    'least Gaussian energy, simplex M=5': (lambda: metrics.least_energy(gaussian(2.), 5, 8), math.exp(-5), 1e-15),
    **{f'Gaussian energy, cross-polytope D={D}': (lambda D=D: metrics.kernel_energy(cross_polytope(D), gaussian(2.)),
       ((2*D-2)*math.exp(-4) + math.exp(-8))/(2*D-1), 1e-12) for D in (2, 3, 4)},
    'Riesz s=-3, regular hexagon': (lambda: 2*metrics.kernel_energy(circle(6), riesz(-3.)), -8.156921938, 1e-9),
    'Riesz s=-3, antipodal clusters win': (lambda: 2*metrics.kernel_energy(torch.tensor([[1., 0.], [-1., 0.]]).repeat(3, 1), riesz(-3.)), -9.6, 1e-12),
    'Riesz s=-2, any zero mean': (lambda: metrics.kernel_energy(torch.cat([randn(20, 5), -randn(20, 5)]), riesz(-2.)), -2*40/39, 1e-12),
    'Riesz s=-2, its least energy': (lambda: metrics.least_energy(riesz(-2.), 40, 5), -2*40/39, 1e-12),
    'Gaussian energy, uniform, D=3': (lambda: metrics.uniform_energy(gaussian(2.), 3), (1-math.exp(-8))/8, 1e-15),
    'negatives, batches in orthogonal spaces': (lambda: negatives(two_batches_orthogonal).negative_var, .02721088, 5e-9),
    'negatives, batches on one simplex': (lambda: negatives(two_batches_same).negative_var, .21768707, 5e-9),
    'negatives, mean': (lambda: negatives(two_batches_same).negative_mean, -1/7, 1e-12),
    'positives, constant difference': (lambda: metrics.cosine_stats(*two_points).positive_mean, 1/math.sqrt(1.49), 1e-7),
    'alignment, the same': (lambda: metrics.alignment(*two_points), 2 - 2/math.sqrt(1.49), 1e-7),
    **{f'effective rank, simplex M={M}': (lambda M=M: metrics.effective_rank(simplex(M)), M-1, 1e-10) for M in (2, 9, 65)},
    **{f'effective rank, cross-polytope D={D}': (lambda D=D: metrics.effective_rank(cross_polytope(D)), D, 1e-10) for D in (2, 9, 64)},
    'effective rank, collapse': (lambda: metrics.effective_rank(torch.ones(50, 7)), 1., 1e-10),
    'effective rank as coded by its authors, simplex M=9': (lambda: metrics.effective_rank(simplex(9, 9), eps=1e-7), 8.000012, 6e-7),
    'RankMe, simplex M=9': (lambda: metrics.rankme(simplex(9, 9)), 8.0000198, 6e-7),
    'rank, simplex M=9': (lambda: metrics.rank(simplex(9, 12)), 8., 0),
    'CDNV, collapse': (lambda: metrics.cdnv(simplex(3).repeat(4, 1), torch.arange(12)%3), 0., 1e-12),
    'neural collapse, a centred orthogonal frame is a simplex': (lambda: metrics.neural_collapse(torch.eye(5).repeat(2, 1), torch.arange(10)%5).frame, 0., 1e-12),
}

@pytest.mark.parametrize('name', NUMBERS)
def test_number_of_the_theory(name):
    f, expected, tolerance = NUMBERS[name]
    assert abs(f() - expected) <= tolerance, (f(), expected)

@pytest.mark.parametrize('n, low, high', [(100, .0006, .0026), (500, .00015, .0009), (2000, .00004, .00013)])
def test_iid_points_score_nearly_zero(n, low, high):
    for seed in range(3): assert low < metrics.wasserstein_uniformity(uniform_points(n, 128, seeded(seed))) < high

def test_positives_are_bounded_by_negatives():
    "For every encoder: mean of positives <= 1 + mean of negatives + 1/(n-1), with equality for aligned views of zero mean."
    for n in (2, 3, 50):
        for noise in (0., .1, 3.):
            z = randn(n, 5, seed=n)
            stats = metrics.cosine_stats(z, z + noise*randn(n, 5, seed=n+1))
            assert stats.positive_mean <= 1 + stats.negative_mean + 1/(n-1) + 1e-12
        stats = negatives(simplex(n))
        assert abs(stats.positive_mean - 1 - stats.negative_mean - 1/(n-1)) < 1e-12


KERNELS = [gaussian(2.), gaussian(30.), log(2.), imq(.5), riesz(-1.), riesz(.5)]

@pytest.mark.parametrize('kernel', KERNELS, ids=str)
@pytest.mark.parametrize('N, D', [(2, 2), (7, 2), (5, 4), (8, 4), (11, 4), (40, 3), (500, 6)])
def test_no_points_fall_below_the_least_energy(kernel, N, D):
    least = metrics.least_energy(kernel, N, D)
    for seed in range(3): assert least <= metrics.kernel_energy(uniform_points(N, D, seeded(seed)), kernel) + 1e-12

def test_the_bound_closes_as_points_are_added():
    for kernel in KERNELS[:5]:
        limit = metrics.uniform_energy(kernel, 4)
        gaps = [limit - metrics.least_energy(kernel, N, 4) for N in (10, 100, 1000)]
        assert gaps[0] >= gaps[1] > gaps[2] > 0 and gaps[2] < 3e-3*max(1, abs(limit))


# ---- float32 tiles and counting, beside the exact road
SHAPES = {'uniform': lambda N, D: uniform_points(N, D, seeded(1)), 'shifted': lambda N, D: randn(N, D) + 1,
          'near collapse': lambda N, D: 1 + 1e-3*randn(N, D), 'clusters': lambda N, D: 5*uniform_points(7, D, seeded(2)).repeat(N//7 + 1, 1)[:N] + .1*randn(N, D),
          'few directions': lambda N, D: randn(N, D)*2.**-torch.arange(D).clamp(max=40), 'zero rows': lambda N, D: randn(N, D)*(torch.arange(N)%3>0)[:, None]}

@pytest.mark.parametrize('D', [2, 3, 33, 700])
@pytest.mark.parametrize('shape', SHAPES)
def test_counted_distance_is_within_its_bound(shape, D, monkeypatch):
    z = SHAPES[shape](400, D)
    exact = metrics.wasserstein_uniformity(z)
    monkeypatch.setattr(metrics, 'EXACT', 0)
    counted = metrics.wasserstein_uniformity(z)
    assert abs(counted - exact) < 2**-15 + 3.2e-5 < 1e-4
    assert abs(counted - exact) < 1e-6, 'far below the bound in practice'

@pytest.mark.parametrize('shape', SHAPES)
def test_float32_tiles_agree_with_float64(shape, monkeypatch):
    z = SHAPES[shape](600, 16)
    def all_of_them(): return [metrics.uniformity(z), metrics.uniformity(z, t=60.), *(metrics.kernel_energy(z, k) for k in KERNELS if k!=KERNELS[5])]
    exact = all_of_them()
    monkeypatch.setattr(metrics, 'EXACT', 0)
    for a, b in zip(all_of_them(), exact): assert abs(a-b) <= 3e-5*max(1, abs(b)), (a, b)

def test_twice_the_same_and_any_layout():
    z = randn(2100, 20).float()
    for f in (metrics.uniformity, metrics.wasserstein_uniformity, metrics.effective_rank, metrics.rank):
        assert f(z)==f(z)==f(z.clone().requires_grad_())
        assert abs(f(z.T.contiguous().T) - f(z)) < 1e-7*abs(f(z)) + 1e-7
    assert metrics.cosine_stats(z, z.flip(0))==metrics.cosine_stats(z, z.flip(0))

def test_parts_do_not_show(monkeypatch):
    z, v, y = randn(500, 6), randn(500, 6, seed=1), torch.arange(500)%4
    def everything():
        return [metrics.alignment(z, v), *metrics.cosine_stats(z, v), metrics.cdnv(z, y), metrics.directional_cdnv(z, y), metrics.ncc_accuracy(z, y), metrics.effective_rank(z),
                metrics.rank(z), *metrics.neural_collapse(z, y), *metrics.classifier_collapse(z, y, v[:4])]
    whole = everything()
    parts = metrics._parts
    def ones(*tensors):
        for rows in parts(*tensors): yield from zip(*(x.split(7) for x in rows))
    monkeypatch.setattr(metrics, '_parts', ones)
    for a, b in zip(everything(), whole): assert_close(a, b, atol=1e-12, rtol=1e-9)

# ---- bad inputs: each has one defined outcome
h, y = randn(30, 6), torch.arange(30)%3
train, test = (h[:20], y[:20]), (h[20:], y[20:])
constant = torch.full((20, 6), .1), y[:20]
g = seeded
EMBEDDING_MEASURES = {name: getattr(metrics, name) for name in ('uniformity', 'wasserstein_uniformity', 'singular_values', 'covariance_spectrum', 'effective_rank', 'rankme', 'rank')} \
    | {'kernel_energy': lambda z: metrics.kernel_energy(z, imq())}
PAIR_MEASURES = {name: getattr(metrics, name) for name in ('alignment', 'cosine_stats')}
LABEL_MEASURES = {name: getattr(metrics, name) for name in ('cdnv', 'directional_cdnv', 'ncc_accuracy', 'neural_collapse')} \
    | {'classifier_collapse': lambda z, y: metrics.classifier_collapse(z, y, randn(3, 6, seed=1))}
PROBES = {'knn': probe.knn, 'linear_probe': probe.linear_probe, 'nearest_centre': probe.nearest_centre,
          'few_shot': lambda *a: probe.few_shot(*a, n_shot=1, n_trials=2, generator=g()), 'sgd_probe': lambda *a: probe.sgd_probe(*a, n_epochs=2, generator=g())}
def with_row(value):
    z = h.clone(); z[3, 2] = value
    return z

REFUSED = [(f'{name}: {what}', lambda f=f, z=z: f(z), (f'{"effective_rank" if name=="rankme" else name}:', text)) for name, f in EMBEDDING_MEASURES.items() for what, z, text in (
    ('one sample', h[:1], 'needs N >= 2 rows and D >= 1 columns, got shape (1, 6)'), ('no sample', h[:0], 'needs N >= 2 rows'), ('no column', h[:, :0], 'needs N >= 2 rows and D >= 1 columns, got shape (30, 0)'),
    ('one vector', h[0], 'must be a floating tensor of shape (N, D)'), ('whole numbers', y[:, None], 'must be a floating tensor of shape (N, D), got torch.int64'), ('an array', h.numpy(), 'got ndarray'),
    ('NaN', with_row(math.nan), 'must be finite, row 3 is not (1 such rows)'), ('infinity', with_row(-math.inf), 'must be finite, row 3 is not (1 such rows)'))] + [
    (f'{name}: {what}', lambda f=f, a=a: f(*a), (f'{name}:', text)) for name, f in PAIR_MEASURES.items() for what, a, text in (
    ('unpaired', (h, h[:9]), 'both views must have one shape, got (30, 6) and (9, 6)'), ('one sample', (h[:1], h[:1]), 'needs N >= 2'), ('NaN in view 2', (h, with_row(math.nan)), 'row 3 is not'))] + [
    (f'{name}: {what}', lambda f=f, a=a: f(*a), (f'{name}:', text)) for name, f in LABEL_MEASURES.items() for what, a, text in (
    ('text labels', (h, ['cat']*30), 'labels must be an integer tensor of shape (30,), got list'), ('float labels', (h, y.float()), 'got torch.float32'), ('wrong length', (h, y[:9]), 'got torch.int64 of shape (9,)'),
    ('one class', (h, y*0), 'needs at least 2 classes, got 1'), ('one sample', (h[:1], y[:1]), 'needs N >= 2'))] + [
    (f'{name}: {what}', lambda f=f, a=a: f(*a), (f'{name}:', text)) for name, f in PROBES.items() for what, a, text in (
    ('empty train', (h[:0], y[:0], *test), 'train set must not be empty'), ('empty test', (*train, h[:0], y[:0]), 'test set must not be empty'), ('other width', (*train, h[20:, 1:], y[20:]), 'must have one width, got 6 and 5'),
    ('text labels', (h[:20], ['cat']*20, *test), 'train labels must be an integer tensor of shape (20,), got list'), ('float labels', (*train, h[20:], y[20:].float()), 'test labels must be an integer tensor'),
    ('NaN', (*train, h[20:]*math.nan, y[20:]), 'test features must be finite, row 0 is not (10 such rows)'))] + [
    (f'{name}: class missing in train', lambda f=f: f(h[:20], y[:20].clamp(max=1), *test), f'{name}: every test class must occur in training, got [2] in test only') for name, f in PROBES.items() if name!='knn'] + [
    (f'{name}: one class', lambda f=f: f(h[:20], y[:20]*0, h[20:], y[20:]*0), f'{name}: needs at least 2 classes in training, got 1') for name, f in PROBES.items() if name in ('linear_probe', 'sgd_probe')] + [
    *((f'knn: k={k!r}', lambda k=k: probe.knn(*train, *test, k=k), f'knn_predict: k must be a whole number >= 1, got {k!r}') for k in (0, -1, 1.5, True, None)),
    *((f'knn: T={t}', lambda t=t: probe.knn(*train, *test, temperature=t), 'temperature must be > 0 or None') for t in (0, -1, math.nan)),
    ('few_shot: too few', lambda: probe.few_shot(*train, *test, n_shot=7, generator=g()), 'every class needs n_shot=7 training rows, classes [2] have fewer'),
    ('uniformity: t', lambda: metrics.uniformity(h, t=math.nan), 't must be > 0, got nan'),
    ('wasserstein: D=1', lambda: metrics.wasserstein_uniformity(h[:, :1]), 'needs dimension >= 2, got 1'),
]

@pytest.mark.parametrize('call, texts', [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(call, texts):
    "The message starts with the function's name and says what must hold and what came."
    with pytest.raises(ValueError) as error: call()
    for text in (texts,) if isinstance(texts, str) else texts: assert text in str(error.value)

def protocol(score): return json.loads(score.protocol)

ACCEPTED = {   # name: (call, what holds for its answer)
    'one training row': (lambda: probe.knn(h[:1], y[:1], *test), lambda s: s.n_train==1 and protocol(s)['k']==1),
    'one test row': (lambda: probe.linear_probe(*train, h[20:21], y[20:21]), lambda s: s.n_test==1 and s.accuracy in (0., 1.)),
    'k > bank is the whole bank': (lambda: probe.knn(*train, *test, k=10**6), lambda s: protocol(s)['k']==20 and s==probe.knn(*train, *test, k=20)),
    'class missing in train, knn': (lambda: probe.knn(h[:20], y[:20].clamp(max=1), *test), lambda s: protocol(s)['classes_missing_in_train']==[2] and s.accuracy<=7/10),
    'class missing in test': (lambda: probe.linear_probe(*train, h[20:], y[20:].clamp(max=1)), lambda s: protocol(s)['classes']==3),
    'label 255': (lambda: [PROBES[p](h[:20], y[:20]+253, h[20:], y[20:]+253).accuracy - PROBES[p](*train, *test).accuracy for p in PROBES], lambda v: v==[0]*5),
    'negative labels': (lambda: [f(h, y-5) for f in LABEL_MEASURES.values()], lambda v: v==[f(h, y) for f in LABEL_MEASURES.values()]),
    'constant features, rank': (lambda: (metrics.rank(constant[0]), metrics.effective_rank(constant[0])), lambda v: v[0]==0 and abs(v[1]-1)<1e-10),
    'constant features, uniformity': (lambda: (metrics.uniformity(constant[0]), metrics.wasserstein_uniformity(constant[0])), lambda v: abs(v[0])<1e-12 and abs(v[1]-1)<1e-12),
    'constant features, cdnv': (lambda: metrics.cdnv(*constant), lambda v: math.isnan(v) or v==math.inf or v>=0),
    'constant columns, linear': (lambda: probe.linear_probe(h[:20]*torch.tensor([1., 0, 0, 0, 0, 0]) + torch.eye(6)[1], y[:20], *test), lambda s: 0<=s.accuracy<=1),
    'd > n': (lambda: (metrics.rank(randn(4, 50)), len(metrics.singular_values(randn(4, 50)))), lambda v: v==(3., 4)),
    'd > n, probes': (lambda: [f(randn(20, 90), y[:20], randn(10, 90, seed=1), y[20:]).n_train for f in PROBES.values()], lambda v: set(v)=={20, 3}),
    'd > n, cosines': (lambda: metrics.cosine_stats(randn(3, 400), randn(3, 400, seed=1)), lambda s: all(map(math.isfinite, s))),
    'rank-deficient covariance': (lambda: (metrics.rank(randn(90, 3)@randn(3, 40)), (metrics.covariance_spectrum(randn(90, 3)@randn(3, 40))>0).sum()), lambda v: v[0]==v[1]==3),
    'scale of the rows, uniformity': (lambda: metrics.uniformity(h*10**torch.linspace(-30, 30, 30).double()[:, None]) - metrics.uniformity(h), lambda v: abs(v)<1e-12),
    'scale of the rows, Wasserstein': (lambda: metrics.wasserstein_uniformity(1e4*h) - metrics.wasserstein_uniformity(h), lambda v: abs(v)<1e-12),
    'scale of the rows, ranks': (lambda: [f(s*z) - f(z) for f in (metrics.effective_rank, metrics.rankme, metrics.rank) for z in (h, h.T) for s in (2.**-1000, 2.**1000)], lambda v: not any(v)),
    'scale of the rows, spectra': (lambda: [*(metrics.singular_values(s*h)/s - metrics.singular_values(h) for s in (2.**-1000, 2.**1000)), metrics.covariance_spectrum(2.**500*h)/2.**1000 - metrics.covariance_spectrum(h)], lambda v: not torch.stack(v).any()),
    'scale of the rows, absolute threshold': (lambda: [metrics.rank(s*h, atol=t) for s, t in ((1e-300, 0), (1e-300, 1e-300), (1e300, 1e300))], lambda v: v==[6., 0., 6.]),
    'half precision': (lambda: metrics.measure(h.bfloat16(), h.bfloat16(), h.half()), lambda v: v==metrics.measure(h.bfloat16().double(), h.bfloat16().double(), h.half().double())),
    'graph attached': (lambda: [f(h.clone().requires_grad_()) for f in (metrics.uniformity, metrics.wasserstein_uniformity, metrics.rank)], lambda v: all(type(x) is float for x in v)),
}

@pytest.mark.filterwarnings('ignore:.*training rows')
@pytest.mark.parametrize('name', ACCEPTED)
def test_accepted(name):
    call, holds = ACCEPTED[name]
    assert holds(call())

@pytest.mark.parametrize('name', PROBES)
def test_shared_rows_are_found(name):
    "Test rows that are training rows, bit for bit, in whatever dtype and order; near ones are not."
    shared = h[[3, 7, 11]]
    with pytest.warns(UserWarning, match=f'{name}: 3 of 13 test rows are also training rows'):
        score = PROBES[name](*train, torch.cat([shared, h[20:]]), torch.cat([y[[3, 7, 11]], y[20:]]))
    assert protocol(score)['test_rows_in_train']==3
    clean = PROBES[name](*train, h[:10]*(1+1e-12), y[:10])
    assert 'test_rows_in_train' not in protocol(clean)

def test_features_do_not_depend_on_the_batch():
    "Features come from the encoder in evaluation mode, whatever mode it was left in, and leave it and its batch statistics as they were."
    experiment = pytest.importorskip('contrastive_nb.experiment')
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.norm = torch.nn.Flatten(), torch.nn.BatchNorm1d(12)
        def forward(self, x): return (h := self.norm(self.f(x))), h
    model, x = Model().train(), torch.randn(10, 3, 2, 2, generator=seeded())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    together, alone = experiment.embed(model, x)[0], experiment.embed(model, x, chunk=1)[0]
    assert_close(together, alone)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not torch.allclose(model(x)[0], together), 'in training mode it would be another number'

def test_linear_probe_reaches_the_optimum_of_scikit_learn():
    linear_model = pytest.importorskip('sklearn.linear_model')
    x, labels = randn(300, 20), torch.arange(300)%5
    x[:, :5] += 1.5*torch.eye(5).double()[labels]
    sets = x[:200], labels[:200], x[200:], labels[200:]
    a, b, names, index = probe._standardised('', *sets[:3], torch.float64)
    for C in (.01, 1., 100.):
        model = linear_model.LogisticRegression(C=C, tol=1e-9, max_iter=10_000).fit(a.numpy(), index.numpy())
        score = probe.linear_probe(*sets, C=C)
        assert score.accuracy==np.mean(model.predict(b.numpy())==sets[3].numpy())
        assert protocol(score)['gradient']<=1e-5


# ---- memory and size
linux = pytest.mark.skipif(not COUNTS, reason='needs the counters of Linux')
def megabytes(metric, N): return memory(HERE/'bench_metrics.py', 'ours', metric, N)

@linux
def test_the_probe_sees_what_is_taken_and_given_back():
    code = 'import torch; from bench import peak; f = lambda mb: torch.ones(mb, 2**18).sum(); f(1); print(peak(f, 64), peak(f, 1))'
    large, small = map(float, subprocess.run([sys.executable, '-c', code], cwd=HERE, capture_output=True, text=True, check=True).stdout.split())
    assert 60 < large < 70 and small < 6

@linux
@pytest.mark.parametrize('metric, most', [('uniformity', 20), ('Wasserstein', 25), ('effective rank', 15)])
def test_memory_is_linear(metric, most): assert megabytes(metric, 10_000) < most   # rows of 5 MB; all pairs would be 200

@linux
@pytest.mark.slow
@pytest.mark.parametrize('metric', ['uniformity', 'Wasserstein', 'effective rank'])
def test_memory_at_50_000(metric): assert megabytes(metric, 50_000) < 50

@pytest.mark.slow
def test_a_hundred_thousand_rows():
    "Copies of a hundred rows: their distance and energy are known."
    few = uniform_points(100, 16, seeded(3))
    many, n = few.repeat(1000, 1).float(), 100_000*99_999
    own, others = 100*1000*999, 100*99*1000**2                                  # pairs of copies, pairs of different rows
    assert abs(metrics.uniformity(many) - math.log((own + others*math.exp(metrics.uniformity(few)))/n)) < 1e-5
    u = unit(few)
    cos = (u@u.T)[*torch.triu_indices(100, 100, 1)].repeat(1000**2//50_000)       # shares: the same law, copies at cosine 1 added
    cos = torch.cat([cos, torch.ones(round(len(cos)*own/others))]).sort().values.numpy()
    exact = metrics._w1_to_uniform(np.r_[-1, cos, 1], np.arange(len(cos)+1)/len(cos), 16)
    assert abs(metrics.wasserstein_uniformity(many) - exact) < 1e-5

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('N', [200, 6000])
def test_a_gpu_agrees(N):
    z, v, labels = randn(N, 40).float(), randn(N, 40, seed=1).float(), torch.arange(N)%7
    gpu = [x.cuda() for x in (z, v, labels)]
    calls = [*(lambda z, v, labels, f=f: f(z) for f in EMBEDDING_MEASURES.values()), lambda z, v, labels: metrics.alignment(z, v), lambda z, v, labels: list(metrics.cosine_stats(z, v)),
             *(lambda z, v, labels, f=f: f(z, labels) for f in (metrics.cdnv, metrics.directional_cdnv, metrics.ncc_accuracy)), lambda z, v, labels: list(metrics.neural_collapse(z, labels)),
             *(lambda z, v, labels, f=f: f(z[:-50], labels[:-50], z[-50:], labels[-50:]).accuracy for f in PROBES.values())]
    for f in calls: assert_close(torch.as_tensor(f(*gpu)).cpu().double(), torch.as_tensor(f(z, v, labels)).double(), atol=1e-6, rtol=1e-5)


def test_wasserstein_of_points_that_all_but_coincide():
    angle = 1e-6*torch.randn(2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert 1 - 1e-11 < metrics.wasserstein_uniformity(torch.stack([angle.cos(), angle.sin()], 1)) <= 1

@pytest.mark.parametrize('call', [lambda: cosine_cdf(0., 3), lambda: cosine_quantile(.5, 3), lambda: metrics.interval([1., 2.]), lambda: metrics.measure(h, h, h)], ids=['cosine_cdf', 'cosine_quantile', 'interval', 'measure'])
def test_a_bare_install_says_what_to_install(call, monkeypatch):
    for part in ('special', 'stats'): monkeypatch.setitem(sys.modules, f'scipy.{part}', None)
    with pytest.raises(ImportError, match=r"scipy is not installed; remedy: pip install 'contrastive-nb\[train\]'"): call()
