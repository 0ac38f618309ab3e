"A training in two processes equals one in a single process, wherever the mathematics says so: same views, same loss of all pairs, same gradient."
import subprocess
import sys
import textwrap

import torch

WORKER = textwrap.dedent('''
    import shutil, sys, torch, torch.distributed as dist
    from torch import nn
    from contrastive_nb.losses import NTXent
    from contrastive_nb.optim import Recipe
    from contrastive_nb.parallel import rank_and_size
    from contrastive_nb.train import Compute, fit
    from contrastive_nb.views import VIEWS

    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    rank, size = rank_and_size()

    class Net(nn.Module):
        def __init__(self, norm):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8))
        def forward(self, x): return x, self.net(x)

    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def train(norm=lambda c: nn.GroupNorm(2, c), checkpoint=None, n_epochs=4, seed=1, **compute):
        model, loss = Net(norm), NTXent(temperature=.3, learn_temperature=True)
        history = fit(model, images, loss, VIEWS['cifar'], Recipe(n_epochs=n_epochs, batch_size=16, lr=1.), generator=torch.Generator().manual_seed(seed), compute=Compute(**compute),
                      on_epoch=lambda m: dict(norm=sum(p.detach().square().sum().item() for p in m.parameters())), checkpoint=checkpoint, progress=False)
        return dict(weights=torch.cat([p.detach().flatten() for p in (*model.parameters(), *loss.parameters())]), history={k: torch.tensor(history[k]) for k in ('train_loss', 'norm')})

    out = dict(plain=train(), parts=train(n_parts=2), batch_norm=train(nn.BatchNorm2d))
    seen = [None]*size
    dist.all_gather_object(seen, out['plain']['weights'])
    assert all(torch.equal(seen[0], s) for s in seen), 'the processes have drifted apart'
    out['checkpoint'] = train(checkpoint=sys.argv[1] + '/checkpoint.pt')
    try: train(batch_norm='sync')
    except ValueError as error: assert size>1 and 'needs GPUs' in str(error)
    else: assert size==1
    for unlike in (dict(seed=rank), dict(checkpoint=f'{sys.argv[1]}/{rank}.pt', n_epochs=4)):   # the second: a disk of its own for each, and on one of them a checkpoint
        if rank==0 and 'checkpoint' in unlike: shutil.copy(sys.argv[1] + '/checkpoint.pt', unlike['checkpoint'])
        try: train(**unlike)
        except ValueError as error: assert size>1 and 'all processes must start alike, but ' in str(error) and ('seed is 0, 1' in str(error) or 'epochs is 4, 0' in str(error)), error
        else: assert size==1
    if rank==0: torch.save(out, sys.argv[1] + '/out.pt')
    dist.destroy_process_group()
''')


def torchrun(script, size, folder):
    folder.mkdir()
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(size), str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    return torch.load(folder/'out.pt', weights_only=True)


def test_two_processes_equal_one(tmp_path):
    script = tmp_path/'worker.py'
    script.write_text(WORKER)
    one, two = (torchrun(script, size, tmp_path/str(size)) for size in (1, 2))
    for how in ('plain', 'parts', 'checkpoint'): torch.testing.assert_close(two[how], one[how], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one['parts'], one['plain'], rtol=1e-4, atol=1e-5)
    # statistics of 16 views are not those of 32: batch norm is the one thing that knows how many processes there are
    assert (two['batch_norm']['history']['train_loss'] - one['batch_norm']['history']['train_loss']).abs().max()>1e-3
