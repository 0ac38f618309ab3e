"""How fast and how lean the losses are beside the forms that are in use. A script, not a test: `python tests/bench_losses.py [--quick]`.

Time: forward and backward, float32, D=128, medians of interleaved rounds; process CPU time on one thread, then wall clock on two.
Limit: the matrix products that the loss can't do without, timed in the same rounds with the same operator on tiles of the same shape;
`at limit` is the ratio that a loss made of nothing else would reach on this machine.
Memory: peak resident memory of a fresh process above what it held with the inputs made and everything warm (Linux); gradients count.
Peers: lightly where it is installed, otherwise its dense form written here; DHEL and KCL as published (exp before log, pdist)."""
import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, normalize

from bench import COUNTS, interleaved, megabytes, memory, peak
sys.path.insert(0, str(Path(__file__).parents[1]))
from contrastive_nb import pairs
from contrastive_nb.kernels import gaussian, imq, log, riesz
from contrastive_nb.label_losses import dscl, nscl, supcon
from contrastive_nb.losses import cacr, dcl, dhel, infonce, kcl, ntxent, siglip

D, T, t, gamma = 128, .2, 2., 16.


def dense_cosines(z1, z2):
    z1, z2 = normalize(z1, dim=1), normalize(z2, dim=1)
    off = ~torch.eye(len(z1), dtype=torch.bool)
    def without_diagonal(m): return m[off].view(len(m), -1)
    return z1@z1.T/T, z1@z2.T/T, z2@z1.T/T, z2@z2.T/T, without_diagonal

def dense_ntxent(z1, z2):
    c11, c12, c21, c22, without_diagonal = dense_cosines(z1, z2)
    logits = torch.cat([torch.cat([c12, without_diagonal(c11)], 1), torch.cat([c21, without_diagonal(c22)], 1)])
    return cross_entropy(logits, torch.arange(len(z1)).repeat(2))

def dense_dcl(z1, z2):
    c11, c12, c21, c22, without_diagonal = dense_cosines(z1, z2)
    def one(own, other): return torch.cat([without_diagonal(own), without_diagonal(other)], 1).logsumexp(1) - other.diagonal()
    return (one(c11, c12).mean() + one(c22, c21).mean())/2

def published_dhel(z1, z2):
    z1, z2 = normalize(z1, dim=1), normalize(z2, dim=1)
    off = ~torch.eye(len(z1), dtype=torch.bool)
    def partition(z): return torch.exp(z@z.T/T)[off].view(len(z), -1).sum(1)
    return -torch.log(torch.exp((z1*z2).sum(1)/T)/(partition(z1)*partition(z2))).mean()

def published_kcl(z1, z2):
    z1, z2 = normalize(z1, dim=1), normalize(z2, dim=1)
    def energy(z): return torch.exp(-t*torch.pdist(z)**2).mean()
    return gamma*(energy(z1) + energy(z2)) - 2*torch.exp(-t*(z1 - z2).square().sum(1)).mean()

def lightly():
    "Lightly's losses, or None."
    try:
        try: import contrastive_nb.compat   # torchvision beside a CPU build of torch
        except ImportError: pass
        from lightly.loss import DCLLoss, NTXentLoss
        return NTXentLoss(T), DCLLoss(T)
    except Exception: return None


OURS = {
    'NT-Xent': lambda a, b: ntxent(a, b, temperature=T),
    'DCL': lambda a, b: dcl(a, b, temperature=T),
    'DHEL': lambda a, b: dhel(a, b, temperature=T),
    'KCL gaussian': lambda a, b: kcl(a, b, kernel=gaussian(t), gamma=gamma),
}
MORE = {
    'InfoNCE': lambda a, b: infonce(a, b, temperature=T),
    'KCL log': lambda a, b: kcl(a, b, kernel=log(t), gamma=gamma),
    'KCL imq': lambda a, b: kcl(a, b, kernel=imq(), gamma=gamma),
    'KCL riesz(-1)': lambda a, b: kcl(a, b, kernel=riesz(-1.), gamma=gamma),
    'SupCon': lambda a, b: supcon(torch.stack([a, b]), ten_classes(a), temperature=T),
    'SupCon inside': lambda a, b: supcon(torch.stack([a, b]), ten_classes(a), temperature=T, inside=True),
    'NSCL': lambda a, b: nscl(torch.stack([a, b]), ten_classes(a), temperature=T),
    'DSCL': lambda a, b: dscl(torch.stack([a, b]), ten_classes(a), temperature=T),
    'SigLIP': siglip,
    'CACR': lambda a, b: cacr(torch.stack([a, b])),
}
def ten_classes(z): return torch.arange(len(z)) % 10
found = lightly()
THEIRS = dict(zip(OURS, (*(found or (dense_ntxent, dense_dcl)), published_dhel, published_kcl)))
GOALS = {'NT-Xent': (6, 8, 15), 'DCL': (5, 9, 20), 'DHEL': (2.2, 3.3, 7), 'KCL gaussian': (2, 4, 9)}


def views(B):
    g = torch.Generator().manual_seed(B)
    return [torch.randn(B, D, generator=g, requires_grad=True) for _ in range(2)]

def step(loss, z1, z2):
    z1.grad = z2.grad = None
    loss(z1, z2).backward()

def products(name, B):
    "A function that does the loss's matrix products and nothing else, half of a symmetric matrix, two or three times and back; and how many there are to each that it does."
    views, rows = (1, 2*B) if name in ('NT-Xent', 'DCL') else (2, B)
    once = name.startswith('KCL') or rows**2 <= 2*pairs.KEPT   # tiles are made once
    h, w = (min(n, rows) for n in pairs.TILE)
    a, b, e = torch.randn(h, D), torch.randn(w, D), torch.randn(h, w)
    room, n = pairs._room(a, h, w, pairs.TILE), views*rows**2/2/(h*w)
    def run():
        for _ in range(math.ceil(n)):
            pairs._product(a, b, room=room)
            if not once: pairs._product(a, b, room=room)
            pairs._add_product(a, e, b.T); pairs._add_product(b, e.T, a.T)
    return run, n/math.ceil(n)

def measured(who, name, B):
    "Peak MB above the inputs; called in a process of its own."
    torch.set_num_threads(1)
    loss = (OURS | MORE if who=='ours' else THEIRS)[name]
    step(loss, *views(512))
    return peak(step, loss, *views(B))

if __name__=='__main__':
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--quick', action='store_true', help='small batches and few rounds')
    args.add_argument('--threads', type=int, default=1)
    args.add_argument('--sizes', type=int, nargs='*')
    args.add_argument('--no-memory', action='store_true')
    args.add_argument('--memory', nargs=3, metavar=('WHO', 'LOSS', 'B'), help='measure one and print it')
    args = args.parse_args()
    if args.memory:
        print(measured(*args.memory[:2], int(args.memory[2])))
        sys.exit()
    torch.set_num_threads(args.threads)
    CLOCK = time.process_time if args.threads==1 else time.perf_counter
    sizes = args.sizes or ((256, 1024) if args.quick else (256, 1024, 4096))
    print(f"torch {torch.__version__}, {args.threads} thread(s), peers for NT-Xent and DCL: {'lightly' if found else 'dense forms'}, float32 products: {'oneDNN' if pairs._ONEDNN else 'default'}")
    print(f"\n{'loss':15}{'B':>6}{'theirs ms':>11}{'ours ms':>10}{'ratio':>8}{'goal':>7}{'at limit':>10}{'% of limit':>12}")
    for B in sizes:
        rounds = max(2, (10 if args.quick else 30)*256//B)
        z = views(B)
        for name in OURS:
            with torch.no_grad(): torch.testing.assert_close(OURS[name](*z), THEIRS[name](*z), rtol=1e-5, atol=1e-5)
        # one loss at a time, so that its three columns are measured within seconds of each other
        for name in OURS:
            alone, share = products(name, B)
            m = interleaved({'theirs': lambda: step(THEIRS[name], *z), 'ours': lambda: step(OURS[name], *z), 'limit': alone}, rounds, CLOCK)
            m['limit'] *= share
            goal = dict(zip((256, 1024, 4096), GOALS[name])).get(B, '')
            print(f"{name:15}{B:6}{m['theirs']*1e3:11.2f}{m['ours']*1e3:10.2f}{m['theirs']/m['ours']:8.1f}{goal:>7}"
                  + f"{m['theirs']/m['limit']:10.1f}{m['limit']/m['ours']*100:12.0f}", flush=True)
        m = interleaved({name: lambda f=f: step(f, *z) for name, f in (OURS | MORE).items()}, max(1, rounds//4), CLOCK)
        print(f"  B={B}, of KCL gaussian: " + ', '.join(f"{name} {m[name]/m['KCL gaussian']:.2f}" for name in MORE if 'KCL' in name)
              + '; of NT-Xent: ' + ', '.join(f"{name} {m[name]/m['NT-Xent']:.2f}" for name in MORE if 'KCL' not in name), flush=True)
    if not args.no_memory and COUNTS:
        many = (1024, 4096) if args.quick else (4096, 8192, 16384, 65536)
        print(f"\nMB above the inputs{'':10}" + ''.join(f"{B:>9,}" for B in many) + f"   theirs at {many[0]:,}")
        for name in OURS:
            print(f"{name:29}" + ''.join(f"{megabytes(memory(__file__, 'ours', name, B)):>9}" for B in many) + f"{megabytes(memory(__file__, 'theirs', name, many[0])):>12}", flush=True)
    if args.threads==1 and not args.quick and (os.cpu_count() or 1) > 1:
        print()
        subprocess.run([sys.executable, __file__, '--threads', '2', '--no-memory'], check=True)
