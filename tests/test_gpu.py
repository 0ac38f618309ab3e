"The GPU kernels against dense float64: natively on a CUDA device, elsewhere in Triton's interpreter, in a process of its own."
import importlib.util
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from contrastive_nb import gpu

CUDA = torch.cuda.is_available()
INTERPRETED = gpu.interpreted() and not CUDA
HAS_TRITON = importlib.util.find_spec('triton') is not None
needs_kernels = pytest.mark.skipif(not (HAS_TRITON and (CUDA or INTERPRETED)), reason='neither a CUDA device with Triton nor its interpreter')
DEVICE = 'cuda' if CUDA else 'cpu'
DTYPES = torch.float32, torch.float16, torch.bfloat16
SIZES, DIMS = (2, 3, 17, 64, 130), (3, 16, 48, 128)
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


def rows(B, D, dtype, seed=0, hard=None):
    z = torch.nn.functional.normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(seed)), dim=1)
    if hard=='identical': z = z[:1].expand(B, D)
    if hard=='zero': z[0] = 0
    if hard=='zeros': z = torch.zeros(B, D)
    return z.to(DEVICE, dtype).clone().requires_grad_()


def dense_lse(a, blocks, T, offset=0, keys=None):
    keys = torch.arange(len(blocks[0]), device=a.device) if keys is None else keys
    same = keys[offset:offset+len(a), None]==keys
    return torch.cat([(a @ o.T/T).masked_fill(same, -torch.inf) for o in blocks], 1).logsumexp(1)


def dense_mean(z, kind, p):
    q = z.square().sum(1)
    d2 = (q[:, None] + q - 2*z @ z.T).clamp_min(0)[~torch.eye(len(z), dtype=torch.bool, device=z.device)]
    return {'gaussian': lambda: (-p*d2).exp(), 'log': lambda: -(p*d2).log1p(), 'imq': lambda: p*(p*p + d2).rsqrt()}[kind]().mean()


def close(got, want, eps, what, floor=1e-30):
    assert got.isfinite().all(), what
    error = ((got.double() - want).abs().max()/want.abs().max().clamp_min(floor)).item()
    assert error<=eps, f'{what}: relative error {error:.1e}'


def compare_lse(build, T, dtype, what, weights=None):
    "`build(tensors) -> (anchors, blocks, options)`; the same in float64 is the truth."
    tensors, call = build
    wide = [t.detach().double().requires_grad_() for t in tensors]
    T1, T2 = (torch.tensor(T, device=DEVICE, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64))
    a, blocks, options = call(tensors)
    got = gpu.row_lse(a, blocks, T1, **options)
    a, blocks, options = call(wide)
    want = dense_lse(a, blocks, T2.detach().float().double() + (T2 - T2.detach()), **options)
    w = torch.linspace(-1, 2, len(got), device=DEVICE) if weights is None else weights
    assert got.dtype==torch.float32
    close(got.detach(), want.detach(), 3e-6, what + ' value', floor=1.)
    ours = torch.autograd.grad(got, [*tensors, T1], w)
    true = torch.autograd.grad(want, [*wide, T2], w.double())
    largest = max(g.abs().max() for g in true[:-1])
    for t, g, g0 in zip(tensors, ours, true):
        assert g.dtype==t.dtype and g.shape==t.shape
        close(g, g0, EPS[dtype], what + ' gradient', floor=max(largest*1e-1, 1e-3))
    close(ours[-1], true[-1], EPS[dtype], what + ' temperature', floor=want.detach().abs().max().item()/T)


SETS = dict(within=lambda t: (t[0], (t[0],), {}), cross=lambda t: (t[0], (t[1],), {}), both=lambda t: (t[0], (t[0], t[1]), {}))


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('pairs', SETS)
@pytest.mark.parametrize('T', (.01, .1, 1.))
def test_row_lse_equals_dense(pairs, dtype, T):
    for B, D in product(SIZES, DIMS):
        tensors = [rows(B, D, dtype, seed) for seed in range(1 if pairs=='within' else 2)]
        compare_lse((tensors, SETS[pairs]), T, dtype, f'{pairs} {dtype} T={T} B={B} D={D}')


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('hard', ('identical', 'zero', 'zeros'))
@pytest.mark.parametrize('T', (.01, .1, 1.))
def test_row_lse_of_hard_batches(dtype, hard, T):
    for B, D in ((2, 3), (17, 48), (130, 128)):
        compare_lse(([rows(B, D, dtype, 0, hard), rows(B, D, dtype, 1, hard)], SETS['both']), T, dtype, f'{hard} {dtype} T={T} B={B} D={D}')


@needs_kernels
@pytest.mark.parametrize('D', (129, 200, 300, 512))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_long_rows(D, dtype):
    compare_lse(([rows(70, D, dtype, s) for s in range(2)], SETS['both']), .1, dtype, f'{dtype} D={D}')
    compare_mean(rows(70, D, dtype), 'gaussian', 2., f'{dtype} D={D}')


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_two_views_stacked_are_ntxent_negatives(dtype):
    B = 37
    z1, z2 = (rows(B, 16, dtype, s) for s in range(2))
    def stacked(t):
        z = torch.cat(t)
        return z, (z,), dict(keys=torch.arange(B, device=DEVICE).repeat(2))
    compare_lse(([z1, z2], stacked), .2, dtype, f'stacked {dtype}')
    one = gpu.row_lse(torch.cat([z1, z2]).detach(), (torch.cat([z1, z2]).detach(),), .2, keys=torch.arange(B, device=DEVICE).repeat(2))
    assert_close(one, dense_lse(torch.cat([z1, z2]).detach().double(), (torch.cat([z1, z2]).detach().double(),), .2,
                                keys=torch.arange(B, device=DEVICE).repeat(2)).float(), rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('T', (.01, .1, 1.))
def test_cross_lse_equals_two_rows(dtype, T):
    for B, D in ((2, 3), (17, 48), (130, 128), (70, 300)):
        z1, z2 = (rows(B, D, dtype, s) for s in range(2))
        w1, w2 = (torch.linspace(a, 2, B, device=DEVICE) for a in (-1, .5))
        t = torch.tensor(T, device=DEVICE, requires_grad=True)
        wide1, wide2 = (z.detach().double().requires_grad_() for z in (z1, z2))
        wide_t = t.detach().double().requires_grad_()
        for got, want in zip(gpu.cross_lse(z1, z2, t), (dense_lse(wide1, (wide2,), wide_t), dense_lse(wide2, (wide1,), wide_t))):
            close(got.detach(), want.detach(), 3e-6, f'cross {dtype} T={T} B={B} value', floor=1.)
        want = (dense_lse(wide1, (wide2,), wide_t)*w1).sum() + (dense_lse(wide2, (wide1,), wide_t)*w2).sum()
        def ours(*leaves): return torch.autograd.grad(sum((g*w).sum() for g, w in zip(gpu.cross_lse(z1, z2, t), (w1, w2))), leaves)
        true = torch.autograd.grad(want, (wide1, wide2, wide_t))
        for name, g, g0 in zip(('z1', 'z2'), ours(z1, z2), true): close(g, g0, EPS[dtype], f'cross {dtype} T={T} B={B} {name}')
        close(ours(t)[0], true[2], EPS[dtype], f'cross {dtype} T={T} B={B} temperature', floor=B/T)
        for z, g in zip((z1, z2), ours(z1, z2)): assert_close(ours(z)[0], g)


@needs_kernels
def test_labels_as_keys_keep_other_classes():
    labels = torch.arange(50, device=DEVICE)**2 % 7
    compare_lse(([rows(50, 16, torch.float32, s) for s in range(2)], lambda t: (t[0], tuple(t), dict(keys=labels))), .1, torch.float32, 'labels')


@needs_kernels
def test_ranks_own_rows_against_everybody():
    whole = rows(83, 16, torch.float32)
    for first, last in ((0, 40), (40, 83), (82, 83)):
        def rank(t): return t[0], (t[1],), dict(offset=first)
        compare_lse(([whole[first:last].detach().clone().requires_grad_(), whole], rank), .1, torch.float32, f'rank {first}')


@needs_kernels
def test_an_anchor_without_negatives_is_minus_infinity_and_pulls_nothing():
    z = rows(20, 16, torch.float32)
    keys = torch.zeros(20, dtype=torch.long, device=DEVICE)
    lse = gpu.row_lse(z, (z,), .1, keys=keys)
    assert (lse==-torch.inf).all()
    assert (torch.autograd.grad(lse.sum(), z)[0]==0).all()
    keys[3] = 1   # one row of another class: it sees all, all see it alone
    compare_lse(([z], lambda t: (t[0], (t[0],), dict(keys=keys))), .1, torch.float32, 'one of another class')


@needs_kernels
def test_the_same_block_twice():
    z = rows(33, 16, torch.float32)
    compare_lse(([z], lambda t: (t[0], (t[0], t[0]), {})), .1, torch.float32, 'twice')


@needs_kernels
def test_strided_expanded_and_unaligned_rows():
    wide = rows(41, 40, torch.float32)
    for name, view in dict(columns=lambda t: t[:, 3:20], every_second=lambda t: t[::2, ::2], transposed=lambda t: t[:, :16].T.contiguous().T,
                           shifted=lambda t: t.flatten()[1:601].view(40, 15), expanded=lambda t: t[:1, :16].expand(30, 16)).items():
        compare_lse(([wide], lambda t: (view(t[0]), (view(t[0]),), {})), .1, torch.float32, name)
        compare_mean(wide, 'gaussian', 2., name, view, floor=.1)


@needs_kernels
def test_only_the_gradients_asked_for():
    a, b = rows(20, 16, torch.float32, 0), rows(20, 16, torch.float32, 1)
    T = torch.tensor(.2, device=DEVICE, requires_grad=True)
    full = torch.autograd.grad(gpu.row_lse(a, (a, b), T).sum(), (a, b, T))
    for x, y, t in ((a, b.detach(), .2), (a.detach(), b, .2), (a.detach(), b.detach(), T), (a, b, T.detach())):
        wanted = [(v, g) for v, g in zip((x, y, t), full) if isinstance(v, torch.Tensor) and v.requires_grad]
        for (v, g), got in zip(wanted, torch.autograd.grad(gpu.row_lse(x, (x, y), t).sum(), [v for v, _ in wanted])): assert_close(got, g)
    with torch.no_grad(): assert not gpu.row_lse(a, (b,), .2).requires_grad and not gpu.kernel_mean(a, 'log', 2.).requires_grad


@needs_kernels
def test_a_second_derivative_is_refused():
    z = rows(5, 16, torch.float32)
    for value in (gpu.row_lse(z, (z,), .2).sum(), sum(gpu.cross_lse(z, z, .2)).sum(), gpu.row_lse(z[:, :8], (z[:, 8:],), .2).sum(), gpu.kernel_mean(z, 'gaussian', 2.)):
        g, = torch.autograd.grad(value, z, create_graph=True)
        with pytest.raises(RuntimeError, match='no second derivative'): torch.autograd.grad(g.sum() + z.sum(), z)


@needs_kernels
@pytest.mark.parametrize('bad', (torch.nan, torch.inf))
def test_bad_numbers_are_never_hidden(bad):
    z = rows(20, 16, torch.float32).detach()
    z[3, 2] = bad
    z.requires_grad_()
    for value in (gpu.row_lse(z, (z,), .2).mean(), gpu.kernel_mean(z, 'gaussian', 2.), gpu.kernel_mean(z, 'log', 2.), gpu.kernel_mean(z, 'imq', 1.)):
        assert not (value.isfinite() and torch.autograd.grad(value, z)[0].isfinite().all())


@needs_kernels
def test_results_repeat_to_the_last_bit():
    a, b = rows(130, 48, torch.float32, 0), rows(130, 48, torch.float32, 1)
    def once(): return torch.cat([g.flatten() for g in torch.autograd.grad(gpu.row_lse(a, (a, b), .1).sum() + gpu.kernel_mean(a, 'log', 2.), (a, b))])
    assert torch.equal(once(), once())


@needs_kernels
def test_refusals():
    z = rows(4, 3, torch.float32)
    for call, text in ((lambda: gpu.row_lse(z, (), .1), 'at least one tensor'), (lambda: gpu.row_lse(z, (z[:, :2],), .1), r'every block must be \(4, 3\).* got \(4, 2\)'),
                       (lambda: gpu.row_lse(z, (z.half(),), .1), 'every block must be'), (lambda: gpu.row_lse(z, (z,), .1, offset=1), 'must exist'),
                       (lambda: gpu.row_lse(z, (z,), .1, keys=torch.ones(4)), 'keys must be'), (lambda: gpu.kernel_mean(z, 'riesz', 1.), 'kind must be one of'),
                       (lambda: gpu.cross_lse(z, z[1:], .1), 'z2 must be like z1'), (lambda: gpu.row_lse(z, (z,), 0), 'temperature must be a number > 0, got 0'), (lambda: gpu.row_lse(z, (z,), torch.ones(2)), 'must hold one number'),
                       (lambda: gpu.kernel_mean(z, 'log', -1.), 'param must be'), (lambda: gpu.kernel_mean(z[:1], 'log', 1.), 'no negatives')):
        with pytest.raises(ValueError, match=text): call()
    seen = []
    torch.vmap(lambda x: (seen.append(gpu.why_not(x)), x.sum())[1])(torch.ones(2, 4, 3, device=DEVICE))
    assert 'vmap' in seen[0]


def compare_mean(z, kind, param, what, view=lambda t: t, floor=None):
    wide = z.detach().double().requires_grad_()
    got, want = gpu.kernel_mean(view(z), kind, param), dense_mean(view(wide), kind, param)
    with torch.no_grad(): assert_close(gpu.kernel_mean(view(z), kind, param), got, rtol=1e-6, atol=1e-7)
    assert got.dtype==torch.float32 and got.shape==()
    close(got.detach(), want.detach(), 5e-6, what + ' value', floor=.1)
    g, = torch.autograd.grad(got, z)
    g0, = torch.autograd.grad(want, wide)
    assert g.dtype==z.dtype and g.shape==z.shape
    close(g, g0, EPS[z.dtype], what + ' gradient', floor=floor or .1/len(z))


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kind, param', (('gaussian', 2.), ('gaussian', .5), ('log', 2.), ('imq', 1.), ('imq', .5)))
def test_kernel_mean_equals_dense(dtype, kind, param):
    for B, D in product(SIZES, DIMS): compare_mean(rows(B, D, dtype), kind, param, f'{kind} {dtype} B={B} D={D}')
    for hard, (B, D) in product(('identical', 'zero', 'zeros'), ((2, 3), (17, 48), (130, 128))):
        compare_mean(rows(B, D, dtype, 0, hard), kind, param, f'{kind} {hard} {dtype} B={B} D={D}')


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
    for name, ours, dense in (('row_lse', lambda: gpu.row_lse(z, (z,), .1).mean(), lambda: dense_lse(wide, (wide,), .1).mean()),
                              ('kernel_mean', lambda: gpu.kernel_mean(z, 'gaussian', 2.), lambda: dense_mean(wide, 'gaussian', 2.))):
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
