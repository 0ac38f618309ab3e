"Value and parameter gradient over several processes equal those of one process that holds the whole batch, for every loss."
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from contrastive_nb.parallel import join

WORKER = textwrap.dedent('''
    import sys, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from contrastive_nb import pairs
    from contrastive_nb.label_losses import LABEL_LOSSES, orthonormal_prototypes
    from contrastive_nb.losses import DHEL, LOSSES, MULTIVIEW_LOSSES, Pairwise, VRNS, NTXent, Sum, loss_parameters
    from contrastive_nb.parallel import Gathered, rank_and_size

    dist.init_process_group('gloo')
    rank, size = rank_and_size()
    usual = pairs.TILE

    def arguments(c):   # the smallest that a loss must be given
        known = loss_parameters(c.fn)
        return {p: v for p, v in dict(temperature=.3, n=100).items() if p in known}

    losses = [(name, c(**arguments(c))) for registry in (LOSSES, MULTIVIEW_LOSSES, LABEL_LOSSES) for name, c in registry.items()]
    losses += [('learnt', NTXent(temperature=.3, learn_temperature=True)), ('cold', NTXent(temperature=.0005)), ('sum', Sum(NTXent(temperature=.3), VRNS(n=100), weights=(1, 3))), ('pairwise', Pairwise(DHEL(temperature=.3)))]
    for case in sys.argv[1:]:
        tiles, rows = case.split(':')
        pairs.TILE = usual if tiles=='whole' else (2, 3)   # so that even these few rows are many tiles, of which each process makes some
        rows = [int(n) for n in rows.split(',')]
        own = slice(sum(rows[:rank]), sum(rows[:rank+1]))
        B, V = sum(rows), 3
        x = torch.randn(V, B, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(B) % 3
        shared = dict(clop=[orthonormal_prototypes(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)], soft_supcon=[torch.ones(V*B, V*B).fill_diagonal_(0)])
        for name, loss in losses:
            torch.manual_seed(2)
            net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()

            def embed(net, part): return net(x[:, part].reshape(-1, 6)).view(V, -1, 4)   # one call for all views, as DistributedDataParallel wants
            def inputs(embedded, part):
                if loss.split==(0, 0): return embedded[0], embedded[1]
                extra = shared.get(name, [])
                return (embedded[:2] if name=='dscl' else embedded, *([labels[part]] if loss.split[1:2]==(0,) else []), *extra)
            def plain(net, loss, part, size=1): return loss(*inputs(embed(net, part), part))
            def penalised(net, loss, part, size=1):   # the mean over processes is that of one
                value = loss(*inputs(embedded := embed(net, part), part))
                push, = torch.autograd.grad(value, embedded, create_graph=True)
                return value + size*(push/size).square().sum()

            params = [*net.parameters(), *loss.parameters()]
            parallel = DistributedDataParallel(net)   # its hooks live as long as it does
            for objective in (plain, penalised):
                expected = objective(net, loss, slice(None))
                grads = torch.autograd.grad(expected, params)
                for p in params: p.grad = None
                value = objective(parallel, Gathered(loss), own, size)
                value.backward()
                if objective is plain: torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=name)
                for p, g in zip(params, grads): torch.testing.assert_close(p.grad, g, rtol=1e-7, atol=1e-10, msg=f'{name}, {objective.__name__}')
        print(f'rank {rank} agrees for {len(losses)} losses, {case}', flush=True)
    dist.destroy_process_group()
''')


@pytest.mark.parametrize('size,cases', [(2, ['whole:4,4', 'small:3,6']), (3, ['small:4,4,4', 'whole:3,6,2', 'small:5,0,4'])], ids=['2', '3'])
def test_gathered_loss_equals_one_process(tmp_path, size, cases):
    script = tmp_path/'worker.py'
    script.write_text(WORKER)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(size), str(script), *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    for rank in range(size):
        for case in cases: assert re.search(f'rank {rank} agrees for [0-9]+ losses, {case}', done.stdout), (rank, case)


JOIN = textwrap.dedent('''
    import torch, torch.distributed as dist
    from contrastive_nb.parallel import join
    init = dist.init_process_group
    def told(backend, timeout):
        print(f'{backend} waits for {timeout}', flush=True)
        init(backend, timeout=timeout)
    dist.init_process_group = told
    join(torch.device('cpu'), timeout=90)
    dist.barrier()
    dist.destroy_process_group()
''')


def test_a_script_may_leave_by_itself(tmp_path):
    script = tmp_path/'worker.py'
    script.write_text(JOIN)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode==0 and 'Exception' not in done.stderr, done.stderr[-3000:]
    assert done.stdout.count('gloo waits for 0:01:30')==2


@pytest.mark.parametrize('device,missing', [('cpu', 'RANK'), ('cuda', 'RANK, LOCAL_RANK')])
def test_what_torchrun_would_have_set_is_named(monkeypatch, device, missing):
    for name in ('RANK', 'LOCAL_RANK'): monkeypatch.delenv(name, raising=False)
    for name, value in dict(WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='29500').items(): monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f'join: beside WORLD_SIZE=2 the environment must hold RANK, .*, {missing} is missing'): join(torch.device(device))
