"A training that is killed at any moment and started again ends with the same weights and history, bit for bit on a CPU."
import os
import struct
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch

from contrastive_nb.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from contrastive_nb.encoders import make_encoder
from contrastive_nb.losses import DHEL, NTXent, dhel
from contrastive_nb.optim import Recipe
from contrastive_nb.train import Compute, fit
from contrastive_nb.views import VIEWS

WORKER = textwrap.dedent('''
    import os, signal, sys, torch
    import contrastive_nb.checkpoint, contrastive_nb.record
    from contrastive_nb.encoders import make_encoder
    from contrastive_nb.losses import DHEL
    from contrastive_nb.optim import Recipe
    from contrastive_nb.train import fit
    from contrastive_nb.views import VIEWS

    folder, moment, count, optimizer, keep = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    torch.set_num_threads(1)

    def dies(fn, at, half=False):
        "`fn`, which kills this process when it is called for the count-th time: before, in the middle, or after."
        calls = []
        def killer(*args, **kwargs):
            calls.append(1)
            last = len(calls)==count
            if last and at=='before': os.kill(os.getpid(), signal.SIGKILL)
            result = fn(*args, **kwargs)
            if last:
                if half: os.truncate(args[1], os.path.getsize(args[1])//2)
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return killer

    loss, views, measure = DHEL(temperature=.3), VIEWS['cifar'], lambda model: {}
    if moment=='step': loss.forward = dies(loss.forward, 'before')
    if moment=='epoch': measure = dies(measure, 'after')
    if moment=='writing': torch.save = dies(torch.save, 'after', half=True)
    if moment=='renaming': os.replace = dies(os.replace, 'before')
    if moment=='renamed': os.replace = dies(os.replace, 'after')

    images = torch.randint(256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = make_encoder('small', projector=(16, 8))
    history = fit(model, images, loss, views, Recipe(n_epochs=5, batch_size=16, n_warmup=1, optimizer=optimizer), generator=torch.Generator().manual_seed(1),
                  on_epoch=measure, checkpoint=folder + '/checkpoint.pt', every=1 if keep>1 else 2, keep=keep, progress=False)
    torch.save(dict(model=model.state_dict(), train_loss=history['train_loss']), folder + '/end.pt')
''')


def run(script, folder, *how, keep=1):
    folder.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, str(script), str(folder), *how, str(keep)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=300)

def end(folder): return torch.load(folder/'end.pt', weights_only=True)


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('resume')/'worker.py'
    path.write_text(WORKER)
    return path

@pytest.fixture(scope='module')
def whole(script):
    done = {}
    def of(optimizer):
        if optimizer not in done:
            folder = script.parent/optimizer
            assert (r := run(script, folder, 'never', '0', optimizer)).returncode==0, r.stderr[-3000:]
            done[optimizer] = end(folder)
        return done[optimizer]
    return of


FAST = [('step', '8', 'sgd'), ('writing', '1', 'lars'), ('renamed', '2', 'adamw')]
SLOW = [('step', '1', 'sgd'), ('epoch', '3', 'adamw'), ('writing', '2', 'sgd'), ('renaming', '1', 'sgd'), ('renamed', '3', 'sgd')]

@pytest.mark.parametrize('moment, count, optimizer', [*(pytest.param(*m, id='-'.join(m)) for m in FAST), *(pytest.param(*m, id='-'.join(m), marks=pytest.mark.slow) for m in SLOW)])
def test_killed_and_started_again(script, whole, tmp_path, moment, count, optimizer):
    folder = tmp_path/'run'
    assert run(script, folder, moment, count, optimizer).returncode==-9
    assert not (folder/'end.pt').exists()
    again = run(script, folder, 'never', '0', optimizer)
    assert again.returncode==0, again.stderr[-3000:]
    expected, got = whole(optimizer), end(folder)
    assert got['train_loss']==expected['train_loss']
    assert all(torch.equal(v, got['model'][k]) for k, v in expected['model'].items())
    assert sorted(p.name for p in folder.iterdir())==['checkpoint.pt', 'end.pt']   # one checkpoint, and nothing left over


@pytest.mark.slow
def test_killed_again_and_again(script, whole, tmp_path):
    folder = tmp_path/'run'
    for moment, count in (('step', '9'), ('writing', '1'), ('epoch', '2'), ('renamed', '1')): assert run(script, folder, moment, count, 'sgd').returncode==-9
    assert run(script, folder, 'never', '0', 'sgd').returncode==0
    assert end(folder)['train_loss']==whole('sgd')['train_loss']


# with keep=3 and a checkpoint an epoch: 0, 1, 2, 2, 2 older ones are renamed before the new one gets its name
@pytest.mark.parametrize('moment, count', [pytest.param('renaming', 5, id='between'), pytest.param('renamed', 2, id='gap', marks=pytest.mark.slow), pytest.param('renaming', 6, id='last', marks=pytest.mark.slow)])
def test_killed_while_older_checkpoints_move(script, whole, tmp_path, moment, count):
    folder = tmp_path/'run'
    assert run(script, folder, moment, str(count), 'sgd', keep=3).returncode==-9
    assert len(list(folder.glob('checkpoint*.pt'))) in (1, 2, 3)
    assert run(script, folder, 'never', '0', 'sgd', keep=3).returncode==0
    assert end(folder)['train_loss']==whole('sgd')['train_loss'] and all(torch.equal(v, end(folder)['model'][k]) for k, v in whole('sgd')['model'].items())
    assert sorted(p.name for p in folder.iterdir())==['checkpoint.older-1.pt', 'checkpoint.older-2.pt', 'checkpoint.pt', 'end.pt']


def test_a_damaged_newest_checkpoint(script, whole, tmp_path):
    "What was lost is trained again, to the same bits."
    folder = tmp_path/'run'
    assert run(script, folder, 'step', '12', 'sgd', keep=2).returncode==-9   # in epoch 4, so that 2 and 3 are kept
    os.truncate(folder/'checkpoint.pt', (folder/'checkpoint.pt').stat().st_size//2)
    again = run(script, folder, 'never', '0', 'sgd', keep=2)
    assert again.returncode==0 and 'going on from checkpoint.older-1.pt, after epoch 2' in again.stderr, again.stderr[-3000:]
    assert end(folder)['train_loss']==whole('sgd')['train_loss'] and all(torch.equal(v, end(folder)['model'][k]) for k, v in whole('sgd')['model'].items())


class Killed(Exception): pass


def tiny(**training):
    "What is saved of a training, and loaded again, without its history."
    model = torch.nn.Linear(3, 2)
    return dict(model=model, optimizer=torch.optim.SGD(model.parameters(), .1), generator=torch.Generator(), training=training)


def test_a_number_at_the_end_of_a_name_is_no_age(tmp_path):
    one, other = tmp_path/'t1.pt', tmp_path/'t1.5.pt'
    save_checkpoint(other, **tiny(t=1.5), history={})
    assert load_checkpoint(one, **tiny(t=1))=={}
    for _ in range(2): save_checkpoint(one, **tiny(t=1), history={}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir())==['t1.5.pt', 't1.older-1.pt', 't1.pt']
    load_checkpoint(other, **tiny(t=1.5))


@pytest.mark.parametrize('name', ['a[1].pt', 'a', '*'])
def test_what_was_half_written_goes_and_nothing_else(tmp_path, name):
    half, other = tmp_path/f'.{name}.abcdefgh.tmp', tmp_path/f'.{name}.5.abcdefgh.tmp'
    for path in half, other, tmp_path/'.b.pt.abcdefgh.tmp': path.write_bytes(b'half')
    assert load_checkpoint(tmp_path/name, **tiny())=={}
    assert sorted(p.name for p in tmp_path.iterdir())==sorted([other.name, '.b.pt.abcdefgh.tmp'])


def spoil(path, how):
    "Damage the list of contents at the end of a checkpoint."
    content = bytearray(path.read_bytes())
    last = content.rfind(b'PK\1\2')
    if how=='sizes': content[last+20:last+28] = struct.pack('<II', 10**6, 10**6)
    if how=='place': content[-50:-42] = struct.pack('<q', 2**62)
    path.write_bytes(content)


@pytest.mark.parametrize('how', ['sizes', 'place'])
def test_any_damage_is_passed_over(tmp_path, how):
    "Python's own reader says EOFError, without a word, and OSError here."
    path = tmp_path/'checkpoint.pt'
    for n in (1, 2): save_checkpoint(path, **tiny(), history=dict(train_loss=[1.]*n), keep=2)
    spoil(path, how)
    with pytest.raises(ValueError, match='must be a whole checkpoint'): read_checkpoint(path)
    with pytest.warns(UserWarning, match='going on from checkpoint.older-1.pt, after epoch 1'): load_checkpoint(path, **tiny())


def test_a_damaged_checkpoint_takes_the_place_of_no_whole_one(tmp_path, monkeypatch):
    "Killed before the next one has its name, the training still goes on from the older one."
    path, replace = tmp_path/'checkpoint.pt', os.replace
    for n in (1, 2): save_checkpoint(path, **tiny(), history=dict(train_loss=[1.]*n), keep=2)
    os.truncate(path, 100)
    with pytest.warns(UserWarning, match='after epoch 1'): load_checkpoint(path, **tiny())
    def dies(source, to):
        if to==path: raise Killed
        replace(source, to)
    monkeypatch.setattr(os, 'replace', dies)
    with pytest.raises(Killed): save_checkpoint(path, **tiny(), history=dict(train_loss=[1.]*2), keep=2)
    assert load_checkpoint(path, **tiny())==dict(train_loss=[1.])


def test_a_damaged_checkpoint_of_another_training_stays(tmp_path):
    path = tmp_path/'checkpoint.pt'
    for _ in range(2): save_checkpoint(path, **tiny(lr=.1), history={}, keep=2)
    os.truncate(path, 100)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='belongs to another training'): load_checkpoint(path, **tiny(lr=.2))
    assert path.stat().st_size==100


def test_a_checkpoint_that_cannot_be_opened_is_no_damage(tmp_path):
    (tmp_path/'checkpoint.pt').mkdir()
    with pytest.raises(IsADirectoryError): load_checkpoint(tmp_path/'checkpoint.pt', **tiny())


def here(path, loss, until=None, names=('double', 'single'), all=False, **recipe):
    "Four epochs in this process, or fewer; losses, temperature and weights, or the history."
    images = torch.randint(256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, seen = make_encoder('small', channels=1, projector=(8,)), []
    def measure(_):
        seen.append(1)
        if len(seen)==until: raise Killed
        return dict(zip(names, (np.float64(2*len(seen)), np.float32(.5))))
    history = fit(model, images, loss, VIEWS['digits'], Recipe(**dict(n_epochs=4, batch_size=16, lr=np.float64(.3)) | recipe), generator=torch.Generator().manual_seed(0), on_epoch=measure, checkpoint=path, progress=False)
    return history if all else (history['train_loss'], [v.detach().clone() for v in (*(loss.parameters() if isinstance(loss, torch.nn.Module) else ()), *model.parameters())])


def test_a_learnt_temperature_goes_on_where_it_was(tmp_path):
    def learning(): return NTXent(temperature=.3, learn_temperature=True)
    whole = here(tmp_path/'whole.pt', learning())
    with pytest.raises(Killed): here(tmp_path/'again.pt', learning(), until=3)
    again = here(tmp_path/'again.pt', learning())
    assert again[0]==whole[0] and all(torch.equal(a, b) for a, b in zip(again[1], whole[1]))
    assert whole[1][0]!=torch.tensor(.3).log() and learning().label=='ntxent(temperature=0.3, learn_temperature=True)'
    with pytest.raises(ValueError, match='belongs to another training: loss was'): here(tmp_path/'again.pt', NTXent(temperature=.3))


class Rising(torch.nn.Module):
    "A loss with a counter and nothing to learn."
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(()))
    def forward(self, a, b):
        self.n += 1
        return self.n*dhel(a, b, temperature=.3)


def test_buffers_of_a_loss_go_on_where_they_were(tmp_path):
    whole = here(tmp_path/'whole.pt', Rising())
    with pytest.raises(Killed): here(tmp_path/'again.pt', Rising(), until=3)
    assert here(tmp_path/'again.pt', Rising())[0]==whole[0]


def test_a_function_with_other_parameters_is_another_training(tmp_path):
    with pytest.raises(Killed): here(tmp_path/'c.pt', partial(dhel, temperature=.3), until=3)
    with pytest.raises(ValueError, match=r"loss was \"dhel\(\(\), \{'temperature': 0.3\}\)\", is"): here(tmp_path/'c.pt', partial(dhel, temperature=.5))


def test_another_measure_goes_on_without_a_gap(tmp_path):
    with pytest.raises(Killed): here(tmp_path/'c.pt', DHEL(temperature=.3), until=3)
    history = here(tmp_path/'c.pt', DHEL(temperature=.3), names=('double', 'third'), all=True)
    assert {len(v) for v in history.values()}=={4}
    np.testing.assert_array_equal(np.isnan(history['single']), [False, False, True, True])
    np.testing.assert_array_equal(np.isnan(history['third']), [True, True, False, False])


def test_a_loss_that_refuses_what_training_made_of_its_input_stops_it(tmp_path):
    calls = []
    def refuses(a, b):
        calls.append(1)
        if len(calls)==4: raise ValueError('two rows coincide, where there is a pole')
        return dhel(a, b, temperature=.3)
    with pytest.raises(FloatingPointError, match='epoch 2, step 2: two rows coincide.*last good checkpoint: .*, after epoch 1; try a lower learning rate'): here(tmp_path/'c.pt', refuses)


def test_gradients_from_before_have_no_part_in_a_training(tmp_path, monkeypatch):
    whole, make = here(None, DHEL(temperature=.3))[0], make_encoder
    def used(*args, **kwargs):
        model = make(*args, **kwargs)
        for p in model.parameters(): p.grad = torch.ones_like(p)
        return model
    monkeypatch.setitem(globals(), 'make_encoder', used)
    assert here(None, DHEL(temperature=.3))[0]==whole


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'lars'])
@pytest.mark.parametrize('buffer', [torch.zeros(1, 1, 1), torch.tensor(0.), None], ids=['shape', 'number', 'nan'])
def test_an_optimiser_that_does_not_fit_is_refused(tmp_path, optimizer, buffer):
    path = tmp_path/'checkpoint.pt'
    with pytest.raises(Killed): here(path, DHEL(temperature=.3), until=2, optimizer=optimizer, lr=.01)
    state = torch.load(path, weights_only=True)
    own = state['optimizer']['state'][0]
    name = next(n for n in own if n!='step')
    own[name] = own[name]*torch.nan if buffer is None else buffer
    torch.save(state, path)
    with pytest.raises(ValueError, match=f'optimiser and generator of .* must fit this training, got ValueError: {name}'): here(path, DHEL(temperature=.3), optimizer=optimizer, lr=.01)


@pytest.mark.slow
def test_compiled_parts_equal_the_whole():
    images = torch.randint(256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def losses(**compute):
        model = make_encoder('small', channels=1, projector=(8,), seed=0)
        return fit(model, images, DHEL(temperature=.3), VIEWS['digits'], Recipe(n_epochs=2, batch_size=16, lr=.1), generator=torch.Generator().manual_seed(0), compute=Compute(**compute), progress=False)['train_loss']
    np.testing.assert_allclose(losses(n_parts=2, compile='default'), losses(n_parts=2), rtol=1e-4)
