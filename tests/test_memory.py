"Memory grows with the batch, not with its square: each loss forward and backward in a process that is refused more than it should need."
import subprocess
import sys
from pathlib import Path

import pytest

from contrastive_nb.label_losses import LABEL_LOSSES
from contrastive_nb.losses import LOSSES, MULTIVIEW_LOSSES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform!='linux', reason='Linux alone refuses memory by the megabyte (RLIMIT_DATA)')]
MAIN = 'ntxent', 'dcl', 'dhel', 'kcl'
ALL_PAIRS = {'soft_supcon'}   # is given a weight for each pair

STEP = '''
import resource, sys
import torch
from bench import peak, resident
from contrastive_nb.label_losses import LABEL_LOSSES
from contrastive_nb.losses import LOSSES, MULTIVIEW_LOSSES, loss_parameters
name, B, D, limit = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
kind = (LOSSES | MULTIVIEW_LOSSES | LABEL_LOSSES)[name]
known = loss_parameters(kind.fn)
loss = kind(**{p: v for p, v in dict(temperature=.2, n=10**6).items() if p in known})

def step(B):
    z = torch.randn(2, B, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    two = kind.example[0].ndim==2
    others = [torch.arange(B) % 1000 if x.ndim==1 else torch.ones(2*B, 2*B) if name=='soft_supcon' else torch.eye(1000, D) for x in kind.example[1:]]
    value = loss(*z) if two else loss(z, *others)
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()

step(64)   # whatever is loaded at first use
resource.setrlimit(resource.RLIMIT_DATA, (int(resident('VmData')*2**20) + limit*10**6,)*2)
try: taken = peak(step, B)
except (RuntimeError, MemoryError) as e:
    if "can't allocate memory" not in str(e): raise
    print('too much')
else: print(taken)
'''

def taken(name, B, D, limit):
    "Megabytes above what the process held before, inputs and gradients included; None where the loss wanted more than `limit`."
    done = subprocess.run([sys.executable, '-c', STEP, name, str(B), str(D), str(limit)], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=1800)
    assert done.returncode==0, done.stderr[-2000:]
    return None if done.stdout.strip()=='too much' else float(done.stdout)


@pytest.mark.parametrize('name', MAIN)
def test_65536_pairs_in_a_gigabyte(name):
    assert taken(name, 65536, 128, 1000) is not None

@pytest.mark.parametrize('name', [name for name in LOSSES | MULTIVIEW_LOSSES | LABEL_LOSSES if name not in ALL_PAIRS])
def test_all_pairs_are_never_held(name):
    assert taken(name, 16384, 16, 250) is not None   # one B x B matrix would take 1,074 MB
