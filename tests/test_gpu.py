"The sums of `pairs` by the GPU kernels, against dense float64: natively on a CUDA device, elsewhere in Triton's interpreter, in a process of its own."
import importlib.util
import inspect
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from contrastive_nb import gpu, pairs
from contrastive_nb.kernels import gaussian, imq, log, riesz
from contrastive_nb.losses import LOSSES, loss_parameters, make_loss
from contrastive_nb.pairs import block_repulsion, class_repulsion, log_repulsion, log_repulsions, mean_kernel

CUDA = torch.cuda.is_available()
INTERPRETED = gpu.interpreted() and not CUDA
HAS_TRITON = importlib.util.find_spec('triton') is not None
needs_kernels = pytest.mark.skipif(not (HAS_TRITON and (CUDA or INTERPRETED)), reason='neither a CUDA device with Triton nor its interpreter')
DEVICE = 'cuda' if CUDA else 'cpu'
DTYPES = torch.float32, torch.float16, torch.bfloat16
SIZES, DIMS = (2, 3, 17, 64, 130), (3, 16, 48, 128)
WITHOUT = {'siglip', 'spectral', 'vicreg', 'barlow', 'vrns', 'ssge'}   # losses that have neither of the two sums
EPS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}   # relative to the largest entry, for gradients


@pytest.mark.slow
@pytest.mark.skipif(CUDA or INTERPRETED, reason='the kernels are tested in this process')
@pytest.mark.skipif(not HAS_TRITON, reason='Triton is not installed')
def test_in_the_interpreter():
    "The switch is read when Triton is imported, so the interpreter needs a fresh process."
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', str(Path(__file__))], cwd=Path(__file__).parents[1],
                          env=os.environ | dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert done.returncode==0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.fixture(autouse=True, scope='module')
def products_of_the_device():
    """The interpreter multiplies the bits of bfloat16 as if they were integers, and float32 in full: here bfloat16 is widened first, and
    float32 is split into two 19-bit numbers, the smaller one cut off, as tensor cores do for `tf32x3`."""
    if not INTERPRETED or not HAS_TRITON: yield; return
    import numpy as np
    from triton.runtime import interpreter as it
    plain = it.InterpreterBuilder.create_dot
    def bits(x, f): return f(np.ascontiguousarray(x).view(np.uint32)).astype(np.uint32).view(np.float32)
    def split(h):
        big = bits(h.data, lambda b: (b.astype(np.uint64) + 0x1000) & 0xffffe000)
        return [it.TensorHandle(x, it.tl.float32) for x in (big, bits(h.data - big, lambda b: b & 0xffffe000))]
    def create_dot(self, a, b, d, precision, *rest):
        if a.data.dtype==np.uint16: a, b = (it.TensorHandle((h.data.astype(np.uint32) << 16).view(np.float32), it.tl.float32) for h in (a, b))
        elif a.data.dtype==np.float32:
            (a, small_a), (b, small_b) = split(a), split(b)
            for x, y in ((small_a, b), (a, small_b)): d = plain(self, x, y, d, precision, *rest)
        return plain(self, a, b, d, precision, *rest)
    it.InterpreterBuilder.create_dot = create_dot
    yield
    it.InterpreterBuilder.create_dot = plain


@pytest.fixture
def runs(monkeypatch):
    "The kernels that ran, by name: plain PyTorch gives the same numbers, so a test has to see that it was not asked."
    names, run = [], gpu._run
    monkeypatch.setattr(gpu, '_run', lambda name, *args, **sizes: (names.append(name), run(name, *args, **sizes))[1])
    yield names


def rows(B, D, dtype, seed=0, hard=None):
    z = torch.nn.functional.normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(seed)), dim=1)
    if hard=='identical': z = z[:1].expand(B, D)
    if hard=='zero': z[0] = 0
    if hard=='zeros': z = torch.zeros(B, D)
    return z.to(DEVICE, dtype).clone().requires_grad_()


def dense_lse(a, blocks, T, keys=None):
    keys = keys or (torch.arange(len(blocks[0]), device=a.device),)*2
    same = keys[0][:, None]==keys[1]
    return torch.cat([(a @ o.T/T).masked_fill(same, -torch.inf) for o in blocks], 1).logsumexp(1)


def dense_mean(z, kernel):
    q = z.square().sum(1)
    d2 = (q[:, None] + q - 2*z @ z.T).clamp_min(0)[~torch.eye(len(z), dtype=torch.bool, device=z.device)]
    return kernel(d2).mean()


def close(got, want, eps, what, floor=1e-30):
    assert got.isfinite().all(), what
    error = ((got.double() - want).abs().max()/want.abs().max().clamp_min(floor)).item()
    assert error<=eps, f'{what}: relative error {error:.1e}'


def compare_lse(tensors, ours, dense, T, dtype, what, runs):
    "`ours(tensors, T)` against `dense(tensors, T)` in float64, value and gradients, by the kernels and nothing else."
    wide = [t.detach().double().requires_grad_() for t in tensors]
    T1, T2 = (torch.tensor(T, device=DEVICE, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64))
    runs.clear()
    got, want = ours(tensors, T1), dense(wide, T2.detach().float().double() + (T2 - T2.detach()))
    w = torch.linspace(-1, 2, len(got), device=DEVICE)
    assert got.dtype==torch.float32 and set(runs)=={'lse'}
    close(got.detach(), want.detach(), 3e-6, what + ' value', floor=1.)
    gradients, true = torch.autograd.grad(got, [*tensors, T1], w), torch.autograd.grad(want, [*wide, T2], w.double())
    assert set(runs)=={'lse', 'lse_grad'}
    largest = max(g.abs().max() for g in true[:-1])
    for t, g, g0 in zip(tensors, gradients, true):
        assert g.dtype==t.dtype and g.shape==t.shape
        close(g, g0, EPS[dtype], what + ' gradient', floor=max(largest*1e-1, 1e-3))
    close(gradients[-1], true[-1], EPS[dtype], what + ' temperature', floor=want.detach().abs().max().item()/T)


SETS = dict(within=lambda t: (t[0],), cross=lambda t: (t[1],), both=lambda t: (t[0], t[1]))   # blocks of candidates
def compare_set(tensors, name, T, dtype, what, runs, view=lambda t: t):
    def blocks(t): return SETS[name](t)
    compare_lse(tensors, lambda t, T: log_repulsion((t := [view(x) for x in t])[0], *blocks(t), temperature=T),
                lambda t, T: dense_lse((t := [view(x) for x in t])[0], blocks(t), T), T, dtype, what, runs)


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('T', (.01, .1, 1.))
def test_log_repulsion_equals_dense(name, dtype, T, runs):
    for B, D in product(SIZES, DIMS):
        compare_set([rows(B, D, dtype, seed) for seed in range(1 if name=='within' else 2)], name, T, dtype, f'{name} {dtype} T={T} B={B} D={D}', runs)


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('hard', ('identical', 'zero', 'zeros'))
@pytest.mark.parametrize('T', (.01, .1, 1.))
def test_log_repulsion_of_hard_batches(dtype, hard, T, runs):
    for B, D in ((2, 3), (17, 48), (130, 128)):
        compare_set([rows(B, D, dtype, 0, hard), rows(B, D, dtype, 1, hard)], 'both', T, dtype, f'{hard} {dtype} T={T} B={B} D={D}', runs)


@needs_kernels
@pytest.mark.parametrize('D', (129, 200, 300, 512))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_long_rows(D, dtype, runs):
    compare_set([rows(70, D, dtype, s) for s in range(2)], 'both', .1, dtype, f'{dtype} D={D}', runs)
    compare_mean(rows(70, D, dtype), gaussian(2.), f'{dtype} D={D}', runs)


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('T', (.01, .1, 1.))
@pytest.mark.parametrize('within, across', ((True, True), (True, False), (False, True)))
def test_negatives_of_several_views(dtype, T, within, across, runs):
    def dense(t, T): return torch.cat([dense_lse(a, [o for o in t if (within if o is a else across)], T) for a in t])
    for V, B, D in ((2, 2, 3), (2, 17, 48), (2, 130, 128), (2, 70, 300), (3, 33, 16)):
        compare_lse([rows(B, D, dtype, s) for s in range(V)], lambda t, T: log_repulsions(torch.stack(t), temperature=T, within=within, across=across).flatten(), dense, T, dtype,
                    f'within={within} across={across} {dtype} T={T} V={V} B={B}', runs)


@needs_kernels
def test_only_one_of_two_results_is_used(runs):
    z1, z2 = (rows(33, 16, torch.float32, s) for s in range(2))
    first, second = log_repulsions(torch.stack([z1, z2]), temperature=.1, within=False)
    wide1, wide2 = (z.detach().double().requires_grad_() for z in (z1, z2))
    for g, g0 in zip(torch.autograd.grad(second.sum(), (z1, z2)), torch.autograd.grad(dense_lse(wide2, (wide1,), .1).sum(), (wide1, wide2))): close(g, g0, 1e-5, 'second')


@needs_kernels
def test_negatives_of_other_classes(runs):
    labels = torch.arange(50, device=DEVICE)**2 % 7
    compare_lse([rows(50, 16, torch.float32)], lambda t, T: class_repulsion(t[0], labels, same=False, temperature=T), lambda t, T: dense_lse(t[0], t, T, (labels, labels)),
                .1, torch.float32, 'labels', runs)


@needs_kernels
def test_rows_of_earlier_batches(runs):
    for M, N in ((40, 83), (83, 40), (1, 7)):
        def dense(t, T): return (t[0] @ t[1].T/T).logsumexp(1)
        compare_lse([rows(M, 16, torch.float32), rows(N, 16, torch.float32, 1)], lambda t, T: block_repulsion(*t, temperature=T), dense, .1, torch.float32, f'{M} against {N}', runs)


@needs_kernels
def test_an_anchor_without_negatives_is_minus_infinity_and_pulls_nothing(runs):
    z = rows(20, 16, torch.float32)
    labels = torch.zeros(20, dtype=torch.long, device=DEVICE)
    lse = class_repulsion(z, labels, same=False, temperature=.1)
    assert (lse==-torch.inf).all()
    assert (torch.autograd.grad(lse.sum(), z)[0]==0).all()
    labels[3] = 1   # one row of another class: it sees all, all see it alone
    compare_lse([z], lambda t, T: class_repulsion(t[0], labels, same=False, temperature=T), lambda t, T: dense_lse(t[0], t, T, (labels, labels)), .1, torch.float32,
                'one of another class', runs)


@needs_kernels
def test_strided_expanded_and_unaligned_rows(runs):
    wide = rows(41, 40, torch.float32)
    for name, view in dict(columns=lambda t: t[:, 3:20], every_second=lambda t: t[::2, ::2], transposed=lambda t: t[:, :16].T.contiguous().T,
                           shifted=lambda t: t.flatten()[1:601].view(40, 15), expanded=lambda t: t[:1, :16].expand(30, 16)).items():
        compare_set([wide], 'within', .1, torch.float32, name, runs, view)
        compare_mean(wide, gaussian(2.), name, runs, view, floor=.1)


@needs_kernels
def test_only_the_gradients_asked_for(runs):
    a, b = rows(20, 16, torch.float32, 0), rows(20, 16, torch.float32, 1)
    T = torch.tensor(.2, device=DEVICE, requires_grad=True)
    full = torch.autograd.grad(log_repulsion(a, a, b, temperature=T).sum(), (a, b, T))
    for x, y, t in ((a, b.detach(), .2), (a.detach(), b, .2), (a.detach(), b.detach(), T), (a, b, T.detach())):
        wanted = [(v, g) for v, g in zip((x, y, t), full) if isinstance(v, torch.Tensor) and v.requires_grad]
        for (v, g), got in zip(wanted, torch.autograd.grad(log_repulsion(x, x, y, temperature=t).sum(), [v for v, _ in wanted])): assert_close(got, g)
    with torch.no_grad(): assert not log_repulsion(a, b, temperature=.2).requires_grad and not mean_kernel(a, log(2.)).requires_grad


@needs_kernels
def test_a_second_derivative_takes_the_dense_form(runs):
    z1, z2 = (rows(9, 16, torch.float32, s) for s in range(2))
    wide = [z.detach().double().requires_grad_() for z in (z1, z2)]
    def twice(value, z): return torch.autograd.grad(torch.autograd.grad(value, z, create_graph=True)[0].square().sum(), z)[0]
    for ours, dense in ((lambda a, b: log_repulsion(a, a, b, temperature=.2).mean(), lambda a, b: dense_lse(a, (a, b), .2).mean()),
                        (lambda a, b: mean_kernel(a, gaussian(2.)), lambda a, b: dense_mean(a, gaussian(2.)))):
        close(twice(ours(z1, z2), z1), twice(dense(*wide), wide[0]), 1e-5, 'second derivative')
    assert set(runs)=={'lse', 'lse_grad', 'kernel_mean'}   # the last through the sums themselves, which the gradient contains


@needs_kernels
@pytest.mark.parametrize('bad', (torch.nan, torch.inf))
def test_bad_numbers_are_never_hidden(bad, runs):
    z = rows(20, 16, torch.float32).detach()
    z[3, 2] = bad
    z.requires_grad_()
    for value in (log_repulsion(z, z, temperature=.2).mean(), *(mean_kernel(z, k) for k in (gaussian(2.), log(2.), imq(1.)))):
        assert not (value.isfinite() and torch.autograd.grad(value, z)[0].isfinite().all())
    assert set(runs) >= {'lse', 'kernel_mean'}


@needs_kernels
def test_results_repeat_to_the_last_bit(runs):
    a, b = rows(130, 48, torch.float32, 0), rows(130, 48, torch.float32, 1)
    def once(): return torch.cat([g.flatten() for g in torch.autograd.grad(log_repulsion(a, a, b, temperature=.1).sum() + mean_kernel(a, log(2.)), (a, b))])
    assert torch.equal(once(), once())


@needs_kernels
@pytest.mark.parametrize('name', LOSSES)
def test_losses_by_kernels_equal_losses_by_tiles(name, runs):
    given = {k: dict(temperature=.2, n=70)[k] for k, default in loss_parameters(LOSSES[name].fn).items() if default is inspect.Parameter.empty}
    loss, z = make_loss(name, **given), [(.9*rows(70, 48, torch.float32, s).detach()).requires_grad_() for s in range(2)]   # spectral clips at length 1
    got = torch.autograd.grad(loss(*z), z)
    assert bool(runs)==(name not in WITHOUT)
    runs.clear()
    wide = [x.detach().double().requires_grad_() for x in z]   # the kernels don't take float64
    for g, g0 in zip(got, torch.autograd.grad(loss(*wide), wide)): close(g, g0, 2e-5, name)
    assert not runs


@needs_kernels
def test_rows_shared_among_processes(runs, monkeypatch):
    "What processes make of their parts of the rows is together what one makes of all."
    u, v = rows(70, 48, torch.float32, 0), rows(70, 48, torch.float32, 1)
    labels, push = torch.arange(70, device=DEVICE) % 5, torch.linspace(-1, 2, 70, device=DEVICE)
    sums = (lambda: log_repulsion(u, u, v, temperature=.2), lambda: log_repulsions(torch.stack([u, v]), temperature=.2).sum(0), lambda: log_repulsions(torch.stack([u, v]), temperature=.2, within=False)[1],
            lambda: class_repulsion(u, labels, same=False, temperature=.2), lambda: block_repulsion(u, v[:31], temperature=.2))
    def answers(): return [(f().detach(), *torch.autograd.grad(f() @ push + 0*v.sum(), (u, v))) for f in sums]
    alone, launches = answers(), len(runs)
    monkeypatch.setattr(pairs, '_in_parts', lambda f, n, share: torch.cat([f(slice(n*rank//3, n*(rank+1)//3)) for rank in range(3)]))
    for a, b in zip(alone, answers()): assert_close(b, a, rtol=2e-5, atol=2e-6)
    assert len(runs)==4*launches


def test_parts_of_rows_add_up():
    x = torch.randn(7, 3)
    for size in (1, 2, 3, 7):
        parts = []
        for rank in range(size): pairs._in_parts(lambda r: 2*x[r], 7, pairs.Share(rank, size, lambda t, how: parts.append((t, how)) or t))
        assert size==1 and not parts or torch.equal(sum(t for t, _ in parts), 2*x) and {how for _, how in parts}=={'sum'}


@needs_kernels
def test_what_the_kernels_cannot_do_goes_by_tiles(runs):
    z = rows(20, 16, torch.float32)
    labels = torch.arange(20, device=DEVICE) % 3
    for call in (lambda: log_repulsion(z, z, temperature=.1, tile=8), lambda: log_repulsion(z.double(), z.double(), temperature=.1), lambda: mean_kernel(z, gaussian(2.), tile=8),
                 lambda: mean_kernel(z, riesz(-1.)), lambda: class_repulsion(z, labels, same=True, temperature=.1), lambda: mean_kernel(torch.ones(4, 513, device=DEVICE), gaussian(2.))):
        assert call().isfinite().all()
    assert not runs
    seen = []
    torch.vmap(lambda x: (seen.append(gpu.why_not(x)), x.sum())[1])(torch.ones(2, 4, 3, device=DEVICE))
    assert 'vmap' in seen[0]


def compare_mean(z, kernel, what, runs, view=lambda t: t, floor=None):
    wide = z.detach().double().requires_grad_()
    runs.clear()
    got, want = mean_kernel(view(z), kernel), dense_mean(view(wide), kernel)
    with torch.no_grad(): assert_close(mean_kernel(view(z), kernel), got, rtol=1e-6, atol=1e-7)
    assert got.dtype==torch.float32 and got.shape==() and runs==['kernel_mean']*2
    close(got.detach(), want.detach(), 5e-6, what + ' value', floor=.1)
    g, = torch.autograd.grad(got, z)
    g0, = torch.autograd.grad(want, wide)
    assert g.dtype==z.dtype and g.shape==z.shape
    close(g, g0, EPS[z.dtype], what + ' gradient', floor=floor or .1/len(z))


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kernel', (gaussian(2.), gaussian(.5), log(torch.tensor(2.)), imq(1.), imq(.5)), ids=str)
def test_kernel_mean_equals_dense(dtype, kernel, runs):
    for B, D in product(SIZES, DIMS): compare_mean(rows(B, D, dtype), kernel, f'{kernel} {dtype} B={B} D={D}', runs)
    for hard, (B, D) in product(('identical', 'zero', 'zeros'), ((2, 3), (17, 48), (130, 128))):
        compare_mean(rows(B, D, dtype, 0, hard), kernel, f'{kernel} {hard} {dtype} B={B} D={D}', runs)


@pytest.mark.skipif(not CUDA, reason='no CUDA device')
@pytest.mark.parametrize('B', (4096, 16384))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_large_batches_and_their_time(B, dtype, capsys):
    "Forward and backward against the dense form in float32, value and gradient too."
    D, z = 128, rows(B, 128, dtype)
    wide = z.detach().float().requires_grad_()
    def time(f, n=10):
        seconds = []
        for _ in range(n):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(); f(); stop.record(); stop.synchronize()
            seconds.append(start.elapsed_time(stop)/1e3)
        return statistics.median(seconds[2:])
    for name, ours, dense in (('log_repulsion', lambda: log_repulsion(z, z, temperature=.1).mean(), lambda: dense_lse(wide, (wide,), .1).mean()),
                              ('mean_kernel', lambda: mean_kernel(z, gaussian(2.)), lambda: dense_mean(wide, gaussian(2.)))):
        got, want = ours(), dense()
        assert_close(got, want, rtol=1e-5, atol=1e-6)
        g, g0 = torch.autograd.grad(got, z)[0].float(), torch.autograd.grad(want, wide)[0]
        assert (g - g0).norm()<=(1e-4 if dtype==torch.float32 else 2e-2)*g0.norm()
        t, t0 = time(lambda: torch.autograd.grad(ours(), z)), time(lambda: torch.autograd.grad(dense(), wide))
        with capsys.disabled(): print(f'\n{name} {dtype} B={B} D={D}: {t*1e3:.2f} ms, dense float32 {t0*1e3:.2f} ms, {6*B*B*D/t/1e12:.0f} Tflop/s', end='')


SHAPES = [(half, D, capability) for half in (True, False) for D in (16, 128, 512) for capability in (80, 90)]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON or gpu.interpreted(), reason='needs the compiler of Triton')
@pytest.mark.parametrize('half, D, capability', SHAPES)
def test_kernels_compile_for_gpus_that_are_not_here(half, D, capability, tmp_path, monkeypatch):
    "What the interpreter accepts, the compiler may not; and every tile must fit the shared memory: 99 KiB on the smallest GPUs."
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    types = dict(M='i32', N='i32', tiles='i32', a='fp32', lift='fp32', row_key='*i64', col_key='*i64') | dict.fromkeys('xyz', '*bf16' if half else '*fp32')
    for name, fixed in (('lse', {}), ('lse_grad', dict(ROWS=True, COLS=True)), ('lse_grad', dict(ROWS=False, COLS=True)),
                        ('kernel_mean', dict(KIND=1, GRAD=True)), ('kernel_mean', dict(KIND=2, GRAD=False))):
        kernel, (sizes, _, _) = gpu._kernels()[name], gpu._tiles(D, half, grad=name!='lse', hopper=capability==90)
        options = {key: sizes.pop(key) for key in ('num_warps', 'num_stages')}
        fixed = fixed | sizes
        names = kernel.arg_names
        source = ASTSource(kernel, {n: 'constexpr' if n in fixed else types.get(n, '*fp32') for n in names}, {(names.index(n),): v for n, v in fixed.items()},
                           {(i,): [['tt.divisibility', 16]] for i, n in enumerate(names) if n not in fixed and types.get(n, '*')[0]=='*'})
        done = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
        assert done.metadata.shared<=(227 if capability==90 else 99)*1024, (name, done.metadata.shared)
        assert ('wgmma.mma_async' if capability==90 else 'mma.sync') in done.asm['ptx'], f'{name} misses the tensor cores'
