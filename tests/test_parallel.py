"Value and parameter gradient over several processes equal those of one process that holds the whole batch."
import subprocess
import sys
import textwrap

import pytest

WORKER = textwrap.dedent('''
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from contrastive_nb.losses import make_loss
    from contrastive_nb.parallel import gather, rank_and_size

    dist.init_process_group('gloo')
    rank, size = rank_and_size()
    torch.manual_seed(0)
    net, rows = torch.nn.Linear(6, 4).double(), [3, 5, 2][:size]
    x1, x2 = torch.randn(2, sum(rows), 6, dtype=torch.float64)
    own = slice(sum(rows[:rank]), sum(rows[:rank+1]))
    for name, params in dict(infonce=dict(temperature=.3), ntxent=dict(temperature=.3), dcl=dict(temperature=.3), dhel=dict(temperature=.3), kcl={}).items():
        loss = make_loss(name, **params)
        net.zero_grad()
        expected = loss(net(x1), net(x2)); expected.backward()
        grad = net.weight.grad.clone(); net.zero_grad()
        parallel = DistributedDataParallel(net)
        value = loss(gather(parallel(x1[own])), gather(net(x2[own])))
        value.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(net.weight.grad, grad)
    print(f'rank {rank} agrees', flush=True)
    dist.destroy_process_group()
''')


@pytest.mark.parametrize('size', (2, 3))
def test_gathered_loss_equals_one_process(tmp_path, size):
    script = tmp_path/'worker.py'
    script.write_text(WORKER)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(size), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    assert all(f'rank {rank} agrees' in done.stdout for rank in range(size))
