"""Metrics and the nearest-neighbour probe against values of public implementations and of formulas evaluated elsewhere.

`golden_metrics.json` travels with the repository. The full collection, where it stands beside the checkout, is read too.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_nb import metrics, probe

HERE = Path(__file__).parent
FULL = Path(__file__).parents[2]/'shared'/'reference'

# one function a metric name; unknown names and unknown parameters are errors, so that no case passes unread
def effective_rank_exact(z, *, eps): return metrics.effective_rank(z, eps=eps)
def effective_rank(z, *, eps, renormalised):
    # its authors divide singular values by 10 when they sum to more than 1,000, after taking the sum: `eps` then weighs ten times
    if metrics.singular_values(z).sum()>1000: eps = 10*eps
    return metrics.effective_rank(z, eps=eps, renormalise=renormalised)
def rankme(z, *, eps): return metrics.rankme(z, eps=eps)
def rank(z, *, tol): return metrics.rank(z, atol=tol)
def singular_values(z): return metrics.singular_values(z).tolist()
def alignment(z1, z2, *, alpha): return metrics.alignment(z1, z2, alpha=alpha)
def uniformity(z1, *, t): return metrics.uniformity(z1, t=t)
def similarity_stats(z1, z2): return list(metrics.cosine_stats(z1, z2))
def cdnv(features, labels): return metrics.cdnv(features, labels)
def directional_cdnv(features, labels): return metrics.directional_cdnv(features, labels)
def ncc_accuracy(features, labels): return metrics.ncc_accuracy(features, labels)
def wasserstein(z, *, d): return metrics.wasserstein_uniformity(z, dim=d)
def sampled_wasserstein(z, *, d, mc_seed, mc_samples): return metrics.wasserstein_uniformity(z, dim=d)   # ours draws nothing
def knn_predict(bank, labels, query, *, k, T, num_classes):
    assert int(labels.max())<num_classes
    return probe.knn_predict(query, bank, labels, k=k, temperature=T).tolist()

RUN = dict(effective_rank=effective_rank, effective_rank_exact=effective_rank_exact, rankme=rankme, rank=rank,
           singular_values=singular_values, alignment=alignment, uniformity=uniformity, similarity_stats=similarity_stats,
           cdnv=cdnv, directional_cdnv=directional_cdnv, ncc_accuracy=ncc_accuracy, knn_predict=knn_predict,
           wasserstein_uniformity=sampled_wasserstein, wasserstein_uniformity_exact=wasserstein)

def check(case, array):
    "Run one case and compare; `array` looks up a stored array by name."
    assert case['metric'] in RUN, f"no function for the metric {case['metric']!r}"
    inputs = {name: torch.as_tensor(np.asarray(array(key))) for name, key in case['inputs'].items()}
    came, value = np.asarray(RUN[case['metric']](**inputs, **case['params'])), np.asarray(case['value'])
    assert came.shape==value.shape
    if 'abs_tol_vs_exact' in case: np.testing.assert_allclose(came, value, rtol=0, atol=case['abs_tol_vs_exact'])
    else: assert (np.abs(came-value) <= case['rtol']*np.maximum(1, np.abs(value))).all(), (came, value)
    if 'exact_value' in case: np.testing.assert_allclose(came, case['exact_value'], rtol=1e-7, atol=1e-9)

SMALL = json.loads((HERE/'golden_metrics.json').read_text())

@pytest.mark.parametrize('case', SMALL['cases'], ids=lambda case: case['id'])
def test_golden(case): check(case, SMALL['arrays'].__getitem__)

def test_every_metric_has_a_golden_case():
    assert {case['metric'] for case in SMALL['cases']} == set(RUN)

def full_cases():
    "The metric cases of the full collection, or one skipped case."
    if not (FULL/'golden_losses.json').exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason='the full collection of golden values is not beside this checkout'))]
    cases = [case for case in json.loads((FULL/'golden_losses.json').read_text())['cases'] if 'metric' in case]
    assert len(cases)>=50, f"the full collection has lost metric cases: {len(cases)} left"
    return [pytest.param(case, id=case['id']) for case in cases]

@pytest.fixture(scope='module')
def full_arrays():
    with np.load(FULL/'golden_losses.npz') as arrays: yield arrays

@pytest.mark.parametrize('case', full_cases())
def test_golden_full(case, full_arrays):
    check(dict(case, value=full_arrays[case['value']]), full_arrays.__getitem__)

def test_wrong_cases_fail():
    "The checker itself: a wrong value, an unknown metric and an unknown parameter are seen."
    case = next(case for case in SMALL['cases'] if case['metric']=='alignment')
    array = SMALL['arrays'].__getitem__
    check(case, array)
    with pytest.raises(AssertionError): check(dict(case, value=case['value'] + 1e-6), array)
    with pytest.raises(AssertionError, match="no function for the metric 'alignement'"): check(dict(case, metric='alignement'), array)
    with pytest.raises(TypeError, match='beta'): check(dict(case, params=dict(alpha=2, beta=1)), array)
