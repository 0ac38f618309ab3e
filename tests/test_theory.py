"The numbers that the theorems name, each found by a loss, a measure or a search: minima, limits, bounds."
import json
import math
import re
from itertools import combinations, takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import gamma

from contrastive_nb.experiment import minimise
from contrastive_nb.kernels import riesz
from contrastive_nb.losses import MULTIVIEW_LOSSES, dhel, infonce, kcl, make_loss, siglip, spectral, vrns
from contrastive_nb.metrics import cosine_stats, effective_rank, rankme, uniformity, wasserstein_uniformity
from contrastive_nb.sphere import cosine_quantile, cross_polytope, log_mean_exp_cosine, simplex, uniform_points


def draw(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def least(loss, V, M, D, starts=4, near=.1):
    "Best end of a few searches; odd starts have views apart."
    return min((minimise(loss, draw(M, D, seed=s) + (near, 10.)[s%2]*draw(V, M, D, seed=99 + s)) for s in range(starts)), key=lambda end: end[1])
def polygon(M):
    a = torch.arange(M, dtype=torch.float64)*2*math.pi/M
    return torch.stack([a.cos(), a.sin()], 1)


@pytest.mark.parametrize('name, params, V, value', [
    ('infonce', {}, 2, .283930038238), ('infonce', dict(symmetric=False), 2, .283930038238), ('ntxent', {}, 2, .504815593053), ('dcl', {}, 2, -.420558458320),
    ('dhel', dict(views='first'), 2, -1.113705638880), ('dhel', dict(views='mean'), 2, -1.113705638880), ('dhel', {}, 2, -.227411277760), ('mv_dhel', {}, 2, -.227411277760),
    ('pvc', {}, 2, .504815593053), ('mv_infonce', {}, 3, .400459260898), ('mv_dhel', {}, 3, -.439729205308), ('pvc', {}, 3, .685628981336)],
    ids=lambda x: str(x) if not isinstance(x, dict) else '-'.join(map(str, x.values())))
def test_minimum_of_five_points_at_half(name, params, V, value):
    loss = make_loss(name, registry=MULTIVIEW_LOSSES, temperature=.5, **params) if name in MULTIVIEW_LOSSES else make_loss(name, temperature=.5, **params)
    def of(z): return loss(z) if name in MULTIVIEW_LOSSES else loss(z[0], z[1])
    assert abs(of(simplex(5, 8).expand(V, -1, -1)) - value) < 1e-11
    assert abs(least(of, V, 5, 8, starts=2)[1] - value) < 1e-9


@pytest.mark.parametrize('M, D, T', [(5, 8, .5), (4, 3, .1), (6, 16, 1.)])
def test_minima_at_other_sizes(M, D, T):
    q = M/((M-1)*T)
    for name, value in dict(infonce=math.log1p((M-1)*math.exp(-q)), ntxent=math.log1p(2*(M-1)*math.exp(-q)), dcl=math.log(2*(M-1)) - q, dhel=2*math.log(M-1) - (M+1)/((M-1)*T)).items():
        loss = make_loss(name, temperature=T)
        assert abs(least(lambda z: loss(*z), 2, M, D)[1] - value) < 1e-6


@pytest.mark.parametrize('M, D', [(8, 4), (6, 3), (5, 8)])
def test_spectral_minimum_on_the_sphere(M, D):
    expected = -2 + max(0, (M/D - 1)/(M - 1))
    assert abs(least(lambda z: spectral(*z, normalize=True), 2, M, D)[1] - expected) < 1e-8
    if (M, D)==(8, 4): assert abs(expected + 1.857142857) < 1e-9


@pytest.mark.parametrize('D', [2, 3, 4])
def test_kcl_at_the_cross_polytope(D):
    expected = -2 + 32*((2*D-2)*math.exp(-4) + math.exp(-8))/(2*D-1)
    best = cross_polytope(D)
    assert abs(kcl(best, best) - expected) < 1e-12
    assert abs(least(lambda z: kcl(*z), 2, 2*D, D, near=.01)[1] - expected) < 1e-8


@pytest.mark.parametrize('M', [5, 6, 7, 9])
def test_kcl_at_the_polygon(M):
    best = polygon(M)
    assert abs(min(minimise(lambda z: kcl(z, z), draw(M, 2, seed=s))[1] for s in range(4)) - kcl(best, best)) < 1e-8


def test_a_concave_kernel_gathers_on_two_opposite_points():
    def loss(z): return kcl(*z, kernel=riesz(-3.), gamma=1.)
    assert abs(loss(polygon(6).expand(2, -1, -1)) + 8.156921938) < 1e-9
    assert abs(least(loss, 2, 6, 2)[1] + 9.6) < 1e-6


def test_siglip_leaves_the_simplex_where_the_condition_says():
    assert abs(siglip(simplex(4), simplex(4)) - .69315204) < 1e-8 and abs(siglip(simplex(4), simplex(4), bias=0.) - .10520265) < 1e-8
    assert abs(least(lambda z: siglip(*z), 2, 4, 8)[1] - .69315204) < 1e-7
    z, value = least(lambda z: siglip(*z, bias=0.), 2, 4, 8)
    stats = cosine_stats(*z)
    assert abs(value - .02686139) < 1e-8 and abs(stats.positive_mean - .5) < 1e-3 and abs(stats.negative_mean + .5) < 1e-3
    def leaves(n, b, s=10.): return (1 + math.exp(s/(n-1) - b))/(1 + math.exp(s + b)) < (n-2)/2
    assert not leaves(4, -10.) and leaves(4, 0.) and not leaves(22_000, -10.) and leaves(22_100, -10.)


@pytest.mark.parametrize('M', range(2, 8))
def test_kcl_of_all_batches_is_kcl_of_all(M):
    u, v = uniform_points(7, 3, torch.Generator().manual_seed(0)), uniform_points(7, 3, torch.Generator().manual_seed(1))
    def mean(loss): return torch.stack([loss(u[list(b)], v[list(b)]) for b in combinations(range(7), M)]).mean()
    for loss in (make_loss('kcl'), make_loss('kcl', kernel='log', t=2., energy_scale=.5), make_loss('kcl', kernel='imq'), make_loss('spectral'), make_loss('vrns', n=7)):
        torch.testing.assert_close(mean(loss), loss(u, v), rtol=1e-12, atol=1e-12)
    first = make_loss('dhel', temperature=.5, views='first')
    if M<7: assert mean(first) - math.log(M-1) < first(u, v) - math.log(6) - 1e-3


def test_limits_of_many_points():
    for D, T, value in ((3, .5, -1.404780), (16, .2, -4.249543), (128, .1, -9.610540)): assert abs(log_mean_exp_cosine(1/T, D) - 1/T - value) < 1e-6
    assert abs(math.exp(-4 + log_mean_exp_cosine(4., 3)) - (1 - math.exp(-8))/8) < 1e-14
    for D, floor in {2: -1.575027, 3: -2.079777, 8: -3.082527, 64: -3.875236, 128: -3.937530, 512: -3.984375, 2048: -3.996094}.items():
        assert abs(log_mean_exp_cosine(4., D) - 4 - floor) < 1e-6
    z = uniform_points(2500, 128, torch.Generator().manual_seed(0))
    assert abs(dhel(z, z, temperature=.1, views='first') - math.log(2499) + 9.6108) < .002
    bias = math.log1p(math.exp(10 - log_mean_exp_cosine(10., 128))/2500)
    assert abs(bias - 1.9414) < 1e-4 and abs(infonce(z, z, temperature=.1) - math.log(2500) + 7.669) < .002
    assert uniformity(simplex(9)) < -3.082527 and abs(uniformity(simplex(9)) + 4*9/8) < 1e-12   # a finite batch goes below the floor


@pytest.mark.parametrize('D, s', [(4, 1.), (8, 2.), (3, .5), (3, -1.)])
def test_riesz_energy_of_the_uniform_law(D, s):
    a = (D-1)/2
    exact = 2**-s*gamma(a - s/2)*gamma(2*a)/(gamma(a)*gamma(2*a - s/2))
    p = (np.arange(200_000) + .5)/200_000
    assert abs((2 - 2*cosine_quantile(p, D)).__pow__(-s/2).mean() - exact) < 2e-3*exact


def test_wasserstein_of_regular_and_random_points():
    for z, value in ((simplex(4), 5/9), (simplex(9), .3068385445), (cross_polytope(2), .41862421), (cross_polytope(3), .38), (cross_polytope(8), .27066063), (cross_polytope(128), .07255006), (torch.ones(5, 7), 1.)):
        assert abs(wasserstein_uniformity(z.double()) - value) < 1e-8
    for N, about in ((100, .0013), (500, .0003), (2000, .00008)): assert about/2 < wasserstein_uniformity(uniform_points(N, 128, torch.Generator().manual_seed(N))) < 2*about


def test_ranks_of_regular_points():
    for z, rank in ((simplex(9), 8), (cross_polytope(5), 5), (torch.ones(6, 4), 1)): assert abs(effective_rank(z) - rank) < 1e-9 and abs(rankme(z) - rank) < 1e-4


def test_variance_of_negatives_at_the_optima_of_fixed_batches():
    low, high = .02721088, .21768707
    shared, apart = torch.cat([simplex(4, 6)]*2), torch.cat([torch.nn.functional.pad(simplex(4), (0, 3)), torch.nn.functional.pad(simplex(4), (3, 0))])
    for z, value in ((shared, high), (apart, low)):
        stats = cosine_stats(z, z)
        assert abs(stats.negative_var - value) < 1e-8 and abs(stats.negative_mean + 1/7) < 1e-12 and abs(vrns(z, z, n=8) - stats.negative_var) < 1e-12


def test_positives_never_exceed_what_negatives_leave():
    for seed in range(50):
        u = draw(8, 3, seed=seed)
        stats = cosine_stats(u, u*(seed%3) + draw(8, 3, seed=seed + 100))
        assert stats.positive_mean <= 1 + stats.negative_mean + 1/7
    stats = cosine_stats(simplex(8), simplex(8))
    assert abs(stats.positive_mean - 1 - stats.negative_mean - 1/7) < 1e-12


def test_every_theorem_of_the_findings_names_a_check_that_exists():
    folder = Path(__file__).parents[1]/'nbs/findings'
    text = [''.join(c['source']) for c in json.loads((folder/'01_theory.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type']=='markdown']
    rows = [line for cell in text for line in cell.splitlines() if line.startswith('| ') and not line.startswith(('| ---', '| loss |', '| statement |'))]
    assert len(rows)>30
    for row in rows:
        checks = re.findall(r'\]\((\.\./[^)#]+)#([^)]+)\)', row.rsplit('|', 2)[1])
        assert checks, f'no check: {row}'
        for path, place in checks:
            file = (folder/path).resolve()
            if file.suffix=='.py': assert re.search(rf'^def {place}\(', file.read_text(encoding='utf-8'), re.M), row
            else:       # a heading with code below it, before the next one
                cells = json.loads(file.read_text(encoding='utf-8'))['cells']
                lines = [(c['cell_type'], line) for c in cells for line in ''.join(c['source']).splitlines()]
                start = [i for i, (kind, line) in enumerate(lines) if kind=='markdown' and line.startswith('#') and place==re.sub(r'[^\w -]', '', line.lstrip('# ').lower()).replace(' ', '-')]
                assert start, f'{path} has no heading {place}'
                level = re.match('#+', lines[start[0]][1])[0]
                below = takewhile(lambda l: l[0]!='markdown' or not re.match(rf'#{{1,{len(level)}}} ', l[1]), lines[start[0]+1:])
                assert any(kind=='code' for kind, _ in below), f'nothing is checked below {path}#{place}'
