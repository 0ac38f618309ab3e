"What users do to losses without meaning harm, beyond `test_losses.py` and `test_properties.py`: modes of torch, odd tensors, extreme parameters, processes."
import math
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from contrastive_nb.kernels import gaussian, imq, log, make_kernel, riesz
from contrastive_nb.label_losses import CLOP, LABEL_LOSSES, ByLabel, SupCon, clop, dscl, nscl, relu_scl, soft_supcon, supcon
from contrastive_nb.losses import LOSSES, MULTIVIEW_LOSSES, InfoNCE, NTXent, PVC, Pairwise, Sum, energy, kcl, loss_parameters, make_loss, mv_dhel, ntxent
from contrastive_nb.parallel import Gathered, gather, rank_and_size
from test_losses import CASES, EVERY, TWO_VIEWS, embeddings, value_and_grads

WITH_TEMPERATURE = pytest.mark.parametrize('loss', [c for c in CASES if c.temperature], ids=lambda c: c.id)
SMOOTH = pytest.mark.parametrize('loss', [c for c in CASES if c.slope and c.id not in ('relu_scl', 'ssge', 'ssge-kl', 'clop-l1')], ids=lambda c: c.id)
z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
two = torch.stack([z, -z.flip(0)])
labels = torch.tensor([0, 1, 0, 2])
BY_LABELS = dict(supcon=supcon, relu_scl=relu_scl, nscl=nscl, dscl=dscl)


# tensors: another device, the same storage, rows of length one already, a convolution's layout, a gradient on one side

@TWO_VIEWS
def test_two_devices_are_named(loss):
    with pytest.raises(ValueError, match='same device, got cpu and meta'): loss(z, z.to('meta'), .2)

@EVERY
def test_one_tensor_as_both_views(loss):
    z1, _ = embeddings()
    value, g1, g2 = value_and_grads(loss, z1, z1)
    one = z1.clone().requires_grad_()
    same = loss(one, one, .2)
    assert_close(same.detach(), value)
    assert_close(torch.autograd.grad(same, one)[0], g1 + g2)

@EVERY
def test_normalising_twice_is_once(loss):
    if loss.raw or loss.id in ('relu_scl', 'spectral-unit'): return   # ReLU comes first; `spectral-unit` sets `normalize` itself
    z1, z2 = (x/x.norm(dim=1, keepdim=True) for x in embeddings())
    assert_close(loss(z1, z2, .2, normalize=False), loss(z1, z2, .2))

@EVERY
def test_the_layout_of_a_convolution(loss):
    z1, z2 = embeddings()
    a, b = (x[:, :, None, None].to(memory_format=torch.channels_last).clone(memory_format=torch.preserve_format).requires_grad_() for x in (z1, z2))
    value, g1, g2 = value_and_grads(loss, z1, z2)
    got = loss(a.flatten(1), b.flatten(1), .2)
    assert_close(got.detach(), value)
    for got, g in zip(torch.autograd.grad(got, (a, b), allow_unused=True, materialize_grads=True), (g1, g2)): assert_close(got.flatten(1), g)

@EVERY
def test_a_gradient_for_the_second_view_alone(loss):
    z1, z2 = embeddings()
    _, _, g2 = value_and_grads(loss, z1, z2)
    z2 = z2.requires_grad_()
    value = loss(z1, z2, .2)
    if value.requires_grad: assert_close(torch.autograd.grad(value, z2, allow_unused=True, materialize_grads=True)[0], g2)
    else: assert (g2==0).all()


# modes of torch

@EVERY
def test_without_gradients(loss):
    z1, z2 = (x.requires_grad_() for x in embeddings())
    value = loss(z1, z2, .2).detach()
    for mode in torch.no_grad, torch.inference_mode:
        with mode():
            got = loss(z1, z2, .2)
            inside = loss(z1.detach().clone(), z2.detach().clone(), .2)   # under inference mode these are inference tensors
        assert not got.requires_grad
        for x in got, inside: assert_close(x.clone(), value)

@EVERY
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)
def test_autocast_of_an_encoder(loss, half):
    "A layer under autocast hands half precision to the loss; the loss is float32's of the same numbers, the weights' gradient stays float32."
    g = torch.Generator().manual_seed(0)
    x1, x2, w = torch.randn(16, 5, generator=g), torch.randn(16, 5, generator=g), torch.randn(6, 5, generator=g).requires_grad_()
    with torch.autocast('cpu', half):
        z1, z2 = x1@w.T, x2@w.T
        value = loss(z1, z2, .2)
    assert z1.dtype==half and value.dtype==torch.float32
    expected = loss(z1.detach().float(), z2.detach().float(), .2)
    assert abs(value - expected) <= 1e-5*max(1, abs(expected))
    value.backward()
    assert w.grad.dtype==torch.float32 and w.grad.isfinite().all()

@EVERY
def test_overflow_of_a_gradient_scaler(loss):
    "Scaled gradients that leave float16 skip the step and halve the scale; then training goes on."
    g = torch.Generator().manual_seed(0)
    x1, x2, w = torch.randn(8, 5, generator=g), torch.randn(8, 5, generator=g), torch.randn(6, 5, generator=g).requires_grad_()
    optimizer, scaler = torch.optim.SGD([w], lr=1e-3), torch.amp.GradScaler('cpu', init_scale=2.**60, backoff_factor=2.**-16)
    start, skipped = w.detach().clone(), 0
    for step in range(6):
        optimizer.zero_grad()
        last = w.detach().clone()
        with torch.autocast('cpu', torch.float16): value = loss(x1@w.T, x2@w.T, .2)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < before:
            skipped += 1
            assert (w==last).all()
        assert value.isfinite() and w.isfinite().all()
    assert 0 < skipped < 6 and (w!=start).any()

@pytest.mark.slow
@EVERY
def test_backward_of_a_compiled_loss(loss):
    torch._dynamo.reset()
    z1, z2 = embeddings(6, 4)
    expected = value_and_grads(loss, z1, z2, .3)
    compiled = torch.compile(lambda a, b, T: loss(a, b, T), backend='aot_eager', fullgraph=True)
    for got, e in zip(value_and_grads(compiled, z1, z2, .3), expected): assert_close(got, e, rtol=1e-9, atol=1e-12)

@EVERY
def test_gradients_under_vmap(loss):
    z1, z2 = embeddings(6, 4)
    grads = torch.func.vmap(torch.func.grad(lambda a, b: loss(a, b, .3, validate=False)))(torch.stack([z1, z2]), torch.stack([z2, z1]))
    for got, (a, b) in zip(grads, ((z1, z2), (z2, z1))): assert_close(got, value_and_grads(loss, a, b, .3)[1])

@SMOOTH
def test_double_backward(loss):
    z1, z2 = (x.requires_grad_() for x in embeddings(4, 3))
    assert torch.autograd.gradgradcheck(lambda a, b: loss(a, b, .5), (z1, z2), rtol=1e-3, atol=1e-5)


# numbers at the end of their range

@WITH_TEMPERATURE
@pytest.mark.parametrize('T', [1e-30, 1e-12, 1e-4, 1e4, 1e30])
def test_extreme_temperatures(loss, T):
    for got in value_and_grads(loss, *embeddings(dtype=torch.float32), T): assert got.isfinite().all()

@pytest.mark.parametrize('T', [torch.tensor(.2), torch.tensor([.2])], ids=lambda T: str(tuple(T.shape)))
@WITH_TEMPERATURE
def test_temperatures_as_tensors(loss, T):
    z1, z2 = embeddings(dtype=torch.float32)
    value = loss(z1, z2, T)
    assert_close(value.reshape(()), loss(z1, z2, .2))

KERNEL = dict(gaussian='t', log='t', imq='c')

@pytest.mark.parametrize('name, value', [*((n, v) for n in KERNEL for v in (0, -1., math.nan, math.inf, '2', True, None)), *(('riesz', v) for v in (0, math.nan, math.inf, '2', True, None))], ids=str)
def test_bad_kernel_parameters_are_refused(name, value):
    with pytest.raises(ValueError, match=f'{name}: .*must'): make_kernel(name, **{KERNEL.get(name, 's'): value})

@pytest.mark.parametrize('kernel', [gaussian(1e30), gaussian(1e-30), log(1e30), log(1e-30), imq(1e30), imq(1e-12), riesz(-50.), riesz(30.), riesz(-1e-6)], ids=str)
def test_huge_and_tiny_kernel_parameters(kernel):
    for loss in (kcl, energy):
        for got in value_and_grads(lambda a, b, T: loss(a, b, kernel=kernel), *embeddings(dtype=torch.float32)): assert got.isfinite().all()

@pytest.mark.parametrize('gamma', [1e-30, 1e30])
def test_huge_and_tiny_gamma(gamma):
    for got in value_and_grads(lambda a, b, T: kcl(a, b, gamma=gamma), *embeddings(dtype=torch.float32)): assert got.isfinite().all()

@pytest.mark.parametrize('call, known', [(lambda: make_kernel('rbf'), 'gaussian, log, imq, riesz'), (lambda: make_loss('simclr', temperature=.2), ', '.join(LOSSES)),
                                         (lambda: make_loss('dhel', registry=MULTIVIEW_LOSSES), ', '.join(MULTIVIEW_LOSSES)), (lambda: make_loss('nt', registry=LABEL_LOSSES), ', '.join(LABEL_LOSSES))],
                         ids=['kernel', 'two', 'many', 'labels'])
def test_unknown_names_list_the_known(call, known):
    with pytest.raises(ValueError, match=f'unknown .*known: {known}'): call()

@pytest.mark.parametrize('kind', [k for r in (LOSSES, MULTIVIEW_LOSSES, LABEL_LOSSES) for k in r.values() if 'temperature' in loss_parameters(k.fn)], ids=lambda k: k.fn.__name__)
def test_a_learnt_temperature_at_its_clamp(kind):
    loss = kind(temperature=.2, learn_temperature=True)
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in kind.example]
    with torch.no_grad(): loss.log_temperature.fill_(-50.)
    value = loss(*inputs)
    assert_close(value, kind(temperature=.01)(*inputs))
    for g in torch.autograd.grad(value, (inputs[0], loss.log_temperature)): assert g.isfinite().all()

@pytest.mark.parametrize('value', [math.nan, 200.])
def test_a_learnt_temperature_that_ran_away_is_refused(value):
    loss = NTXent(temperature=.2, learn_temperature=True)
    with torch.no_grad(): loss.log_temperature.fill_(value)
    with pytest.raises(ValueError, match='temperature must be a number > 0, got (nan|inf)'): loss(z, -z)

@pytest.mark.parametrize('B', [1449, 1450, 1451])   # about a million pairs, where a list of all pairs meets its limit elsewhere
def test_around_a_million_pairs(B):
    z1, z2 = torch.randn(2, B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(B))
    u1, u2 = (x/x.norm(dim=1, keepdim=True) for x in (z1, z2))
    def energy_of(u): return (torch.exp(-2*(2 - 2*u@u.T)).sum() - B)/(B*(B-1))
    assert_close(kcl(z1, z2), 16*(energy_of(u1) + energy_of(u2)) - 2*torch.exp(-2*(u1 - u2).square().sum(1)).mean(), rtol=1e-11, atol=0)


# labels and adapters

@pytest.mark.parametrize('name', BY_LABELS)
@pytest.mark.parametrize('bad, text', [(labels[:3], r'shape \(4,\), got \(3,\)'), (labels[:, None], r'shape \(4,\), got \(4, 1\)'), (labels.float(), 'integers, got torch.float32'), (labels.bool(), 'integers, got torch.bool'),
                                       (labels.to(torch.complex64), 'integers, got torch.complex64'), (labels.tolist(), 'a tensor, got list'), (labels.numpy(), 'a tensor, got ndarray')], ids=['length', '2-D', 'float', 'bool', 'complex', 'list', 'numpy'])
def test_bad_labels_are_refused(name, bad, text):
    with pytest.raises(ValueError, match=f'{name}: labels must.*{text}'): BY_LABELS[name](two, bad, temperature=.2)

@pytest.mark.parametrize('rows, by, text', [(two.flatten(0, 1)[:7], torch.arange(4).repeat(2)[:7], 'each label twice, got counts from 1 to 2'), (two.flatten(0, 1)[:6], torch.arange(2).repeat(3), 'each label twice, got counts from 3 to 3'),
                                            (two.flatten(0, 1), torch.arange(4), r'labels must have shape \(8,\), got \(4,\)'), (two.flatten(0, 1), torch.arange(8), 'each label twice, got counts from 1 to 1')],
                         ids=['odd', 'three', 'length', 'alone'])
def test_rows_that_do_not_pair_are_refused(rows, by, text):
    with pytest.raises(ValueError, match=text): ByLabel(NTXent(temperature=.2))(rows, by)

def test_rows_by_label_in_any_order():
    order = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
    rows, by = two.flatten(0, 1)[order], torch.tensor([-7, 3, 2**40, 0]).repeat(2)[order]
    assert_close(ByLabel(NTXent(temperature=.2))(rows, by), ntxent(*two, temperature=.2))
    assert_close(ByLabel(PVC(temperature=.2))(rows, by), ntxent(*two, temperature=.2))
    assert_close(ByLabel(SupCon(temperature=.2))(rows, by), supcon(two, temperature=.2))

@pytest.mark.parametrize('call, text', [
    (lambda: dscl(two, labels, z[:, :2], labels, temperature=.2), r'queue must have shape \(4, 3\), got \(4, 2\)'), (lambda: dscl(two, labels, z, temperature=.2), 'queue_labels must be a tensor, got NoneType'), (lambda: dscl(two, labels, z, labels[:2], temperature=.2), r'queue_labels must have shape \(4,\)'),
    (lambda: dscl(two, labels, z*math.nan, labels, temperature=.2), 'must be finite, row 8 holds nan'), (lambda: dscl(torch.cat([two, two]), labels, temperature=.2), 'needs V = 2 views, got 4'),
    (lambda: soft_supcon(two, torch.ones(8, 7), temperature=.2), r'shape \(8, 8\), got \(8, 7\)'), (lambda: soft_supcon(two, torch.full((8, 8), math.nan), temperature=.2), 'weights >= 0'),
    (lambda: soft_supcon(two, torch.ones(8, 8, dtype=torch.complex64), temperature=.2), 'must be real'), (lambda: clop(two, labels, torch.eye(3)[:2]), 'labels must be from -1 to 1, got 0 to 2'),
    (lambda: clop(two, labels - 2, torch.eye(3)), 'labels must be from -1 to 2, got -2 to 0'), (lambda: clop(two, labels, torch.eye(4)), r'prototypes must have shape \(C, 3\) with C >= 1, got \(4, 4\)'),
    (lambda: clop(two, labels - 2, torch.ones(0, 3)), r'got \(0, 3\)'), (lambda: clop(two, labels, torch.full((3, 3), math.nan)), 'prototypes must be finite'),
    (lambda: dscl(two, labels, z[0, 0], labels, temperature=.2), r'queue must have shape \(K, 3\) and be floating point, got \(\)'), (lambda: dscl(two, labels, z.long(), labels, temperature=.2), 'torch.int64'),
    (lambda: ByLabel(CLOP())(two, labels), r'embeddings must have shape \(N, D\), got \(2, 4, 3\)'),
    (lambda: supcon(torch.stack([z, z*math.nan]), labels, temperature=.2), r'z\[1\] must be finite, row 0 holds nan'), (lambda: soft_supcon(two, torch.ones(8, 8).numpy(), temperature=.2), 'must be a tensor, got ndarray'),
], ids=['queue', 'no queue labels', 'few queue labels', 'queue nan', 'four views', 'weights', 'weights nan', 'weights complex', 'class', 'label -2', 'prototypes', 'no prototypes', 'prototypes nan', 'queue of one number', 'queue integer', 'by label', 'nan in a view', 'numpy'])
def test_bad_company_is_refused(call, text):
    with pytest.raises(ValueError, match=text): call()

def test_an_empty_queue_is_none(): assert_close(dscl(two, labels, z[:0], labels[:0], temperature=.2), dscl(two, labels, temperature=.2))

def test_no_labelled_sample():
    one = two.clone().requires_grad_()
    value = clop(one, torch.full((4,), -1), torch.eye(3))
    assert value==0 and (torch.autograd.grad(value, one)[0]==0).all()   # zero, and still part of the graph

@pytest.mark.parametrize('shape', [(2, 0, 3), (0, 4, 3), (2, 1, 3), (2, 4, 0)], ids=str)
def test_empty_stacks_are_refused(shape):
    with pytest.raises(ValueError, match='B >= 2|V >= 2|at least one dimension'): mv_dhel(torch.ones(shape), temperature=.2)


# processes

def test_no_process_group():
    assert rank_and_size()==(0, 1) and gather(z) is z and gather(two, 1) is two
    assert_close(Gathered(InfoNCE(temperature=.2))(z, -z), InfoNCE(temperature=.2)(z, -z))

def test_a_group_of_one(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert rank_and_size()==(0, 1)
        one = z.T.contiguous().T.requires_grad_()
        value = Gathered(NTXent(temperature=.2))(one, -z)
        assert_close(value, ntxent(z, -z, temperature=.2))
        assert torch.autograd.grad(value, one)[0].isfinite().all()
    finally: dist.destroy_process_group()

GATHER = textwrap.dedent('''
    import torch, torch.distributed as dist
    from torch.testing import assert_close
    from contrastive_nb.label_losses import SupCon
    from contrastive_nb.losses import MVDHEL, NTXent
    from contrastive_nb.parallel import Gathered, gather, rank_and_size
    dist.init_process_group('gloo')
    rank, size = rank_and_size()
    rows = [3, 0, 2]
    own = slice(sum(rows[:rank]), sum(rows[:rank+1]))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64):
        y = (3*x[0]).to(dtype)
        wide = y.repeat_interleave(2, 1)
        for name, (whole, dim) in dict(transposed=(y.T.contiguous().T, 0), strided=(wide[:, ::2], 0), expanded=(y[:1].expand(5, 6), 0), last=(y.T, 1), middle=(torch.stack([y, -y], 1).transpose(0, 1), 1)).items():
            assert not whole.is_contiguous(), name
            part = whole.movedim(dim, 0)[own].movedim(0, dim)
            if dtype.is_floating_point: part = part.detach().requires_grad_()
            got = gather(part, dim)
            assert_close(got, whole, msg=name)
            if dtype.is_floating_point: assert_close(torch.autograd.grad((got*whole).sum(), part)[0], size*part.detach(), msg=name)
    empty = x[0, :0]
    assert gather(empty).shape==(0, 6)   # nobody holds anything
    try: Gathered(NTXent(temperature=.2))(empty, empty)
    except ValueError as e: assert 'a batch of 0' in str(e)
    else: raise AssertionError('an empty batch must be refused by every rank')
    try: Gathered(NTXent(temperature=.2))(x[0, :rank==2], x[1, :rank==2])
    except ValueError as e: assert 'a batch of 1' in str(e)
    else: raise AssertionError('a batch of one over all ranks must be refused by every rank')
    y, ours = x[:, own], torch.tensor([0, 1, 0, 2, 1])[own]
    def refused(call, *words):
        try: call()
        except ValueError as e: assert all(w in str(e) for w in words), (e, words)
        else: raise AssertionError(words)
    first, other = 'got torch.float32 (B, 6) in process 0', 'in process 2'
    for part, kind in ((y[0].double(), 'torch.float64 (B, 6)'), (y[0, :, :5], 'torch.float32 (B, 5)'), (y, 'torch.float32 (B, 2, 6)'), (y[0, 0, 0] if rank==2 else None, 'torch.float32 ()'), (y.tolist(), 'list')):
        refused(lambda: gather(part if rank==2 else y[0]), 'gather: all processes must hold the same', first, f'{kind} {other}')
    loss = SupCon(temperature=.3)
    for part, kind in ((ours.int(), ', torch.int32 (B)'), (ours.float(), ', torch.float32 (B)'), (None, ', NoneType')):
        refused(lambda: Gathered(loss)(y, part if rank==2 else ours), 'Gathered: ', 'got torch.float32 (2, B, 6), torch.int64 (B) in process 0', f'torch.float32 (2, B, 6){kind} {other}')
    refused(lambda: Gathered(loss)(y, *([ours] if rank<2 else [])), f'and torch.float32 (2, B, 6) {other}')
    refused(lambda: Gathered(MVDHEL(temperature=.3))(y, ours), 'MVDHEL must declare how each input splits (attribute `split`), got (1,) for 2 inputs')

    class Named(torch.nn.Module):
        split = 1, 0, None
        def forward(self, z, labels=None, queue=None, *, scale=1): return loss(z, labels) if queue is None else queue
    assert_close(Gathered(loss)(y, None), loss(x, None))   # as alone
    assert_close(Gathered(Named())(y, labels=ours), loss(x, torch.tensor([0, 1, 0, 2, 1])))
    assert_close(Gathered(Named())(y, queue=x), x)
    refused(lambda: Gathered(Named())(y, labels=ours, scale=2), 'for 3 inputs, scale')
    print(f'rank {rank} is fine', flush=True)
    dist.destroy_process_group()
''')

def test_gathering_odd_tensors(tmp_path):
    script = tmp_path/'worker.py'
    script.write_text(GATHER)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '3', str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    assert all(f'rank {rank} is fine' in done.stdout for rank in range(3))


# what the label losses are given beside the embeddings, and parameters that are tensors

@WITH_TEMPERATURE
@pytest.mark.parametrize('T', [torch.tensor([.2]), torch.tensor([[.2]]), torch.tensor(.2, dtype=torch.float64)], ids=['(1,)', '(1,1)', 'float64'])
def test_temperature_tensors_leave_shape_and_dtype(loss, T):
    z1, z2 = embeddings(dtype=torch.float32)
    assert_close(loss(z1, z2, T), loss(z1, z2, .2))

@pytest.mark.parametrize('name', BY_LABELS)
@pytest.mark.parametrize('shape', [(2, 0, 3), (0, 4, 3), (2, 1, 3)], ids=str)
def test_empty_label_stacks(name, shape):
    with pytest.raises(ValueError): BY_LABELS[name](torch.ones(shape), torch.zeros(shape[1], dtype=torch.long), temperature=.2)

@pytest.mark.parametrize('name', BY_LABELS)
def test_labels_elsewhere(name):
    with pytest.raises(ValueError, match='device'): BY_LABELS[name](two, labels.to('meta'), temperature=.2)

@pytest.mark.parametrize('call', [lambda: soft_supcon(two, torch.eye(8, device='meta'), temperature=.2), lambda: clop(two, labels, torch.eye(3, device='meta')), lambda: dscl(two, labels, z.to('meta'), labels, temperature=.2)], ids=['weights', 'prototypes', 'queue'])
def test_company_elsewhere(call):
    with pytest.raises(ValueError, match='device'): call()

def test_queue_labels_float():
    with pytest.raises(ValueError, match='queue_labels must be integers'): dscl(two, labels, z, labels.float(), temperature=.2)

@pytest.mark.parametrize('name', BY_LABELS)
@pytest.mark.parametrize('dtype', [torch.uint16, torch.uint32], ids=str)
def test_unsigned_labels(name, dtype): assert_close(BY_LABELS[name](two, labels.to(dtype), temperature=.2), BY_LABELS[name](two, labels, temperature=.2))

def test_a_learnt_temperature_comes_back_from_its_clamp():
    loss = NTXent(temperature=.2, learn_temperature=True)
    with torch.no_grad(): loss.log_temperature.fill_(-6.)
    loss(z, -z).backward()
    assert loss.log_temperature.grad!=0

def test_by_label_with_sums():
    rows, by = two.flatten(0, 1), labels.repeat(2)
    assert ByLabel(Sum(SupCon(temperature=.2)))(rows, by)==supcon(rows[None], by, temperature=.2)
    by = torch.arange(4).repeat(2)
    assert ByLabel(Sum(NTXent(temperature=.2)))(rows, by)==ntxent(*two, temperature=.2)==ByLabel(Pairwise(NTXent(temperature=.2)))(rows, by)

def test_by_label_with_prototypes():
    rows, by = two.flatten(0, 1), labels.repeat(2)
    assert ByLabel(CLOP())(rows, by, torch.eye(3)).isfinite()
