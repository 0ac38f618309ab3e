"""How fast and how lean the measures are beside the forms in use. A script, not a test: `python tests/bench_metrics.py [--quick] [--full]`.

Time: float32 rows, D=128, process CPU time on one thread, medians of interleaved rounds (`--threads 2`: wall clock).
Limit: the matrix products of all pairs and nothing else, on the same tiles; `at limit` is the ratio that a measure made of them alone would reach.
Memory: peak resident memory of a fresh process above what it held with the input made and everything warm (Linux).
Peers: uniformity by pdist; the spectrum by an SVD that also makes the vectors; Wasserstein as described by its authors: all cosines, 10,000 draws
from the law by numerical inversion of its density, and the distance between the two samples. The last takes a minute and gigabytes at N=10,000, so it is timed
at N=2,000 and, with `--full`, once at 10,000."""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench import COUNTS, interleaved, megabytes, memory, peak
sys.path.insert(0, str(Path(__file__).parents[1]))
from contrastive_nb import metrics, pairs
from contrastive_nb.sphere import _log_cosine_constant, unit

D = 128


def pdist_uniformity(z): return torch.pdist(unit(z)).square().mul(-2).exp().mean().log().item()

def sampled_wasserstein(z):
    "Distance between the cosines of all pairs and 10,000 draws by numerical inversion; noise of about 1e-3."
    from scipy.stats import rv_continuous, wasserstein_distance
    constant = np.exp(_log_cosine_constant(D))
    class Cosine(rv_continuous):
        def _pdf(self, x): return constant*(1-x*x)**((D-3)/2)
    draws = Cosine(a=-1, b=1).rvs(size=10_000, random_state=0)
    u = unit(z)
    return wasserstein_distance((u@u.T)[*torch.triu_indices(len(z), len(z), 1)].double().numpy(), draws)

def svd_effective_rank(z):
    s = torch.linalg.svd(z, full_matrices=False).S
    p = s/s.sum()
    return torch.special.entr(p).sum().exp().item()

OURS = {'uniformity': metrics.uniformity, 'Wasserstein': lambda z: metrics.wasserstein_uniformity(z, bins=2**16), 'effective rank': metrics.effective_rank}
THEIRS = {'uniformity': pdist_uniformity, 'Wasserstein': sampled_wasserstein, 'effective rank': svd_effective_rank}
AGREE = {'uniformity': 1e-5, 'Wasserstein': 5e-3, 'effective rank': 1e-3}
GOALS = {'uniformity': '10x, 15 MB; N=50,000: 2 s, 50 MB', 'Wasserstein': '290x; N=50,000: 3 s, 50 MB', 'effective rank': '3x'}


def rows(N): return torch.randn(N, D, generator=torch.Generator().manual_seed(N))

def products(z):
    "The matrix products of all pairs, on the same tiles."
    for _ in pairs.tiles(z, z, True, None): pass

def timed(f, *args):
    start = CLOCK()
    out = f(*args)
    return CLOCK() - start, out

def measured(who, name, N):
    "Peak MB above the input; called in a process of its own."
    torch.set_num_threads(1)
    f = (OURS if who=='ours' else THEIRS)[name]
    f(rows(2100 if who=='ours' else 200))
    return peak(f, rows(N))

if __name__=='__main__':
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--quick', action='store_true', help='few rounds, nothing at N=50,000')
    args.add_argument('--full', action='store_true', help='the sampled Wasserstein distance at N=10,000 too: a minute and several GB')
    args.add_argument('--threads', type=int, default=1)
    args.add_argument('--no-memory', action='store_true')
    args.add_argument('--memory', nargs=3, metavar=('WHO', 'METRIC', 'N'), help='measure one and print it')
    args = args.parse_args()
    if args.memory:
        print(measured(*args.memory[:2], int(args.memory[2])))
        sys.exit()
    torch.set_num_threads(args.threads)
    CLOCK = time.process_time if args.threads==1 else time.perf_counter
    def mb(*what): return megabytes(memory(__file__, *what)) if COUNTS and not args.no_memory else ''
    print(f"torch {torch.__version__}, {args.threads} thread(s), D={D}, float32 products: {'oneDNN' if pairs._ONEDNN else 'default'}")
    print(f"\n{'measure':16}{'N':>7}{'theirs s':>10}{'ours s':>9}{'ratio':>7}{'at limit':>10}{'theirs MB':>11}{'ours MB':>9}   goal")
    for name in OURS:
        for N in (2000, 10_000) if name=='Wasserstein' else (10_000,):
            slow, z = name=='Wasserstein', rows(N)
            rounds, once = 3 if args.quick or N>2000 and slow else 5, slow and N>2000 and not args.full
            ours = lambda: OURS[name](z)
            m = interleaved({'ours': ours, 'limit': lambda: products(z)} | ({} if slow else {'theirs': lambda: THEIRS[name](z)}), rounds, CLOCK)
            if slow and not once: m['theirs'], value = timed(THEIRS[name], z)
            elif not slow: value = THEIRS[name](z)
            if not once: assert abs(value - ours()) < AGREE[name], (name, value, ours())
            theirs = '' if once else f"{m['theirs']:.3f}"
            ratio = '' if once else f"{m['theirs']/m['ours']:.1f}"
            limit = '' if once or name=='effective rank' else f"{m['theirs']/m['limit']:.1f}"
            print(f"{name:16}{N:7,}{theirs:>10}{m['ours']:9.3f}{ratio:>7}{limit:>10}{'' if once else mb('theirs', name, N):>11}{mb('ours', name, N):>9}   {GOALS[name] if N==10_000 else ''}", flush=True)
    if not args.quick:
        for name in OURS:
            z = rows(50_000)
            m = interleaved({'ours': lambda: OURS[name](z)} | ({} if name=='effective rank' else {'limit': lambda: products(z)}), 1, CLOCK)
            limit = f"{m['ours']/m['limit']*100 - 100:+.0f} % on the products" if 'limit' in m else ''
            print(f"{name:16}{50_000:7,}{m['ours']:19.3f}{'':>28}{mb('ours', name, 50_000):>9}   {limit}", flush=True)
