"Losses against values and gradients that the authors' own code gave (see `golden_losses.json` for each case's source)."
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_nb.kernels import gaussian, imq, log, riesz
from contrastive_nb.losses import dcl, dhel, infonce, kcl, ntxent

HERE, FULL = Path(__file__).parent, Path(__file__).parents[2]/'shared'/'reference'


def kernels(name, t):
    "Our kernels for the authors' name: repulsion, attraction, factor on the repulsion."
    if name=='gaussian_riesz': return riesz(t), gaussian(2.), None
    return dict(gaussian=gaussian, log=log, imq=imq, riesz=riesz)[name](t), None, .5 if name=='log' else None


def official_kcl(z1, z2, *, kernel, t, gamma):
    repel, attract, scale = kernels(kernel, t)
    return kcl(z1, z2, kernel=repel, gamma=gamma, attraction=attract, energy_scale=scale)


ours = {
    'DHEL': lambda z1, z2, tau, include_augs: dhel(z1, z2, temperature=tau, views='both' if include_augs else 'first'),
    'DHEL-symmetric-mean': lambda z1, z2, tau: dhel(z1, z2, temperature=tau, views='mean'),
    'KCL': official_kcl,
    'NT-Xent': lambda z1, z2, tau: ntxent(z1, z2, temperature=tau),
    'InfoNCE-one-sided': lambda z1, z2, tau: infonce(z1, z2, temperature=tau, symmetric=False),
    'InfoNCE-symmetric': lambda z1, z2, tau: infonce(z1, z2, temperature=tau),
    'DCL': lambda z1, z2, tau: dcl(z1, z2, temperature=tau),
    'DCL-one-way': lambda z1, z2, tau: dcl(z1, z2, temperature=tau, symmetric=False),
}


def cases(folder):
    if not (folder/'golden_losses.json').exists(): return []
    return [c for c in json.loads((folder/'golden_losses.json').read_text())['cases'] if c.get('loss') in ours]


def compare(case, arrays):
    dtype = getattr(torch, case['dtype'])
    z = {k: torch.tensor(arrays[key], dtype=dtype, requires_grad=True) for k, key in case['inputs'].items()}
    value = ours[case['loss']](**z, **case['params'])
    value.backward()
    if case['finite']: rtol, expected, grads = case['rtol'], arrays[case['value']], {k: arrays[g] for k, g in case['grads'].items()}
    else: rtol, expected, grads = 1e-4, case['stable_value_float64'], {k: arrays[g] for k, g in case['stable_grads'].items()}
    if case['dtype']=='float32' and case['finite']: rtol = 1e-5
    assert abs(value.item() - float(expected)) <= rtol*max(1, abs(float(expected)))
    assert all(x.grad.isfinite().all() for x in z.values())
    for name, grad in grads.items():
        grad = torch.tensor(grad, dtype=dtype)
        assert (z[name].grad - grad).abs().max() <= rtol*grad.abs().max() + case['grad_atol'], name


@pytest.mark.parametrize('case', cases(HERE), ids=lambda c: c['id'])
def test_golden(case): compare(case, np.load(HERE/'golden_losses.npz'))


def test_fixture_holds_every_loss(): assert {c['loss'] for c in cases(HERE)}==set(ours)


@pytest.mark.skipif(not FULL.exists(), reason='the full golden file is not beside this checkout')
def test_golden_full():
    arrays, found = np.load(FULL/'golden_losses.npz'), cases(FULL)
    assert len(found) > 100
    failed = []
    for case in found:
        try: compare(case, arrays)
        except (AssertionError, ValueError) as error: failed.append(f"{case['id']}: {error}")
    assert not failed, '\n'.join(failed)
