"""Bad requests, bad files, bad times: each has one defined outcome, no done run is lost and none is counted that is not done.

The numbers are those of the list of bad inputs: 41-45 and 60 (kills and signals) stand in test_sweep_kills, the rest here."""
import io
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from PIL import Image

from contrastive_nb.checkpoint import load_checkpoint, read_checkpoint
from contrastive_nb.cli import main
from contrastive_nb.encoders import make_encoder
from contrastive_nb.experiment import Config, prepare
from contrastive_nb.grids import grid
from contrastive_nb.images import load_images
from contrastive_nb.losses import DHEL
from contrastive_nb.notebook import read_notebook
from contrastive_nb.optim import Recipe
from contrastive_nb.record import LAYOUT, lock, read_json, save_dataset, to_json, write_json
from contrastive_nb.results import MixedCode, collect, other_runs, run_states, verify
from contrastive_nb.sweep import check_points, sweep
from contrastive_nb.train import fit
from contrastive_nb.views import VIEWS
from toys import ROOT, SAVE, call, command, grid_file, start, states, toy, wait_for


def cli(*words):
    "The command in this process: fast, for what is refused before anything runs."
    done = CliRunner().invoke(main, [str(w) for w in words])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    return done.exit_code, done.output


def swept(folder, points=(1, 2), **options): return sweep(folder/'toy.ipynb', [dict(n=n) for n in points], folder/'out', progress=False, **options)


def content(folder): return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file() and p.name!='sweep.json'}


# 46: full disk, read-only folder, quota

SMALL = '''set -e
mount -t tmpfs -o size=3m none "$1"
head -c $((2800*1024)) /dev/zero > "$1/ballast"
set +e
eval "$2"; echo "full: $?"
rm "$1/ballast"; eval "$2"; echo "freed: $?"
mount -o remount,ro "$1"; eval "$3"; echo "read-only: $?"; eval "$2"; echo "nothing to do: $?"; cat "$1"/*/run.json'''


@pytest.mark.slow
def test_a_full_and_a_read_only_disk(tmp_path):
    (tmp_path/'disk').mkdir()
    notebook = toy(tmp_path, save=SAVE.replace('np.arange(4.)', 'np.arange(4.)').replace('dict(square=', 'dict(big=("x", np.random.default_rng(0).random(60_000)), square='))
    run = [' '.join(f"'{w}'" if not w.startswith('from') else f'"{w}"' for w in command('sweep', notebook, '-g', grid_file(folder, product=dict(n=ns)), '-o', tmp_path/'disk'))
           for folder, ns in ((tmp_path, [1]), (tmp_path/'disk'/'..'/'other', [1, 2])) if not folder.mkdir(exist_ok=True, parents=True)]
    done = subprocess.run(['unshare', '-rm', 'bash', '-c', SMALL, 'bash', str(tmp_path/'disk'), *run], capture_output=True, text=True, cwd=ROOT) if shutil.which('unshare') else None
    if done is None or 'full:' not in done.stdout: pytest.skip('this system lets nobody mount a small disk')
    assert 'full: 0' not in done.stdout and ('No space left' in done.stdout + done.stderr), (done.stdout, done.stderr)
    assert 'freed: 0' in done.stdout and '1 of 1 runs done' in done.stdout, (done.stdout, done.stderr)
    assert 'read-only: 2' in done.stdout and 'Read-only file system' in done.stderr, (done.stdout, done.stderr)
    assert 'Traceback' not in done.stdout + done.stderr and '"state": "done"' in done.stdout


# 47: two sweeps on one folder; 48: locks; 49: clocks

def test_two_sweeps_share_a_folder(tmp_path):
    notebook = toy(tmp_path, 'import time; time.sleep(.5)')
    both = [start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=list(range(6)))), '-o', tmp_path/'out') for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=200)
        assert process.returncode==0 and '6 of 6 runs done' in out, err   # each ends when all runs are done, whoever did them
    assert [s['attempts'] for s in states(tmp_path/'out').values()]==[1]*6


def test_a_failure_elsewhere_is_not_repeated(tmp_path):
    notebook = toy(tmp_path, 'import time; time.sleep(3); raise ValueError("no")')
    both = [start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out')]
    assert wait_for(lambda: any(s['state']=='running' for s in states(tmp_path/'out').values()))
    both.append(start('sweep', notebook, '-g', tmp_path/'grid.yaml', '-o', tmp_path/'out'))
    assert [p.wait(100) for p in both]==[1, 1]
    for process in both: process.communicate()
    assert len(list(states(tmp_path/'out').values()))==1


def test_what_a_lock_file_says_is_nothing(tmp_path):
    toy(tmp_path)
    folder, = swept(tmp_path, [1])
    (folder/'result.nc').unlink()
    (folder/'.lock').write_text(f'{os.getpid()}\n')      # the number of a living process that holds nothing
    write_json(folder/'run.json', read_json(folder/'run.json') | dict(state='running', started='2099-01-01T00:00:00+00:00'))   # 49: and the clock has jumped back
    assert run_states(tmp_path/'out')[folder.name]['state']=='absent'
    held = lock(folder/'.lock')
    assert run_states(tmp_path/'out')[folder.name]['state']=='running'
    threading.Timer(1.5, os.close, [held]).start()
    began = time.monotonic()
    state, = swept(tmp_path, [1]).values()               # waits for whoever holds it
    assert state['state']=='done' and time.monotonic() - began>1.4


# 50: names; 51: values

@pytest.mark.parametrize('name', ['sed', 'lambda', 'class', 'x=1; import os', '__import__("os").abort()', 'out', 'n.a', '', 'ｎ', 'n\n'])
def test_names_that_are_refused(tmp_path, name):
    code, text = cli('run', toy(tmp_path), '-p', name, '1', '-o', tmp_path/'out')
    assert code==2 and text.count('\n')==1 and not (tmp_path/'out').exists(), text


HARD = dict(quotes='a"b\'c\\', lines='one\ntwo\r\n\ttab', emoji='\U0001f600 {braces} %s $(x) `y`', text='007', word='1_000', no='no', code='"); import os; os.abort()  #', long='x'*10**6, nan=math.nan, inf=-math.inf,
            none=None, yes=True, small=np.float32(.1), whole=np.int64(7), flag=np.bool_(False), pair=(1, 2), nested={'a b': [1, {'t': None, '': [math.inf, -0.]}]}, huge=2**70, path=Path('a/b'))


def test_values_arrive_unchanged(tmp_path):
    "Each in a parameter without a declared type, and back from the kernel by pickle."
    declare = 'n = 1\n' + '\n'.join(f'{name}: object = None' for name in HARD) + '\nout = ""'
    dump = f'import pickle; pickle.dump({{k: globals()[k] for k in {list(HARD)!r}}}, open({str(tmp_path/"got")!r}, "wb"))'
    path = toy(tmp_path, dump, parameters=declare, save=SAVE)
    (folder, state), = sweep(path, [HARD], tmp_path/'out {x} é', progress=False).items()
    assert state['state']=='done', state
    got = pickle.loads((tmp_path/'got').read_bytes())
    meant = HARD | dict(small=float(np.float32(.1)), whole=7, flag=False, pair=[1, 2], path='a/b')
    assert to_json(got)==to_json(meant) and {k: type(v) for k, v in got.items()}=={k: type(v) for k, v in meant.items()}
    assert math.copysign(1, got['nested']['a b'][1][''][1])==-1
    assert list(sweep(path, [HARD], tmp_path/'out {x} é', progress=False).values())[0]['attempts']==1    # and it is known again


@pytest.mark.parametrize('kind, text, value', [('str', '007', '007'), ('str', '1_000', '1_000'), ('str', 'false', 'false'), ('str', '', ''), ('str', 'None', 'None'), ('float', '1e-3', .001), ('float', '-inf', -math.inf),
                                               ('int', '7', 7), ('bool', 'false', False), ('list', '[1, a, 1e-3]', [1, 'a', .001]), ('dict', '{t: 0.5, k: no}', dict(t=.5, k='no')), ('float', '12e5678', None),
                                               ('int', '1_000', None), ('int', '1e3', None), ('int', '1.0', None), ('bool', '1', None), ('list', '3', None), ('dict', '{1: 2}', None)])
def test_values_from_the_command_line(kind, text, value):
    from contrastive_nb.grids import resolve
    from contrastive_nb.notebook import TYPES, Parameter
    parameter = dict(p=Parameter('p', TYPES[kind](), TYPES[kind], ''))
    if value is None:
        with pytest.raises(ValueError): resolve(parameter, dict(p=text), text=True)
    else: assert resolve(parameter, dict(p=text), text=True)==dict(p=value)


# 52: notebooks

def broken(path, how):
    nb = json.loads(path.read_text())
    if how=='no tag': nb['cells'][0]['metadata'] = {}
    if how=='two tags': nb['cells'].insert(0, json.loads(json.dumps(nb['cells'][0])))
    if how=='no out': nb['cells'][0]['source'] = 'n = 1'
    if how=='nbformat 3': nb = dict(nbformat=3, nbformat_minor=0, metadata={}, worksheets=[dict(cells=[dict(cell_type='code', input='n = 1', outputs=[], language='python', metadata={})])])
    path.write_text(json.dumps(nb)[:200 if how=='cut' else None])


@pytest.mark.parametrize('how, says', [('no tag', "one cell tagged 'parameters', this one has 0"), ('two tags', 'this one has 2'), ('no out', "declares no parameter 'out'"), ('nbformat 3', 'this one has 0'), ('cut', 'no readable notebook')])
def test_notebooks_that_are_refused(tmp_path, how, says):
    broken(toy(tmp_path), how)
    code, text = cli('run', tmp_path/'toy.ipynb', '-o', tmp_path/'out')
    assert code==2 and says in text and text.count('\n')==1 and not (tmp_path/'out').exists(), text


def test_notebooks_that_are_put_right(tmp_path):
    "An old injected cell, the name of a kernel that isn't there, and 20 MB of old outputs."
    nb = nbformat.read(toy(tmp_path), 4)
    nb.cells.insert(1, nbformat.v4.new_code_cell('n = 99', metadata=dict(tags=['injected-parameters'])))
    nb.cells[0].outputs = [nbformat.v4.new_output('stream', text='x'*20_000_000)]
    nb.metadata.kernelspec = dict(name='julia-1.0', display_name='Julia', language='julia')
    nbformat.write(nb, tmp_path/'toy.ipynb')
    (folder, state), = swept(tmp_path, [3]).items()
    assert state['state']=='done' and xr.load_dataset(folder/'result.nc').square.item()==9 and (folder/'notebook.ipynb').stat().st_size<10**5


# 53, 54: grids

def test_grids(tmp_path):
    with pytest.raises(ValueError, match='no points'): grid(dict(product=dict(n=[])))
    with pytest.raises(ValueError, match='more than once'): grid(dict(product=dict(n=[1, 2, 1])))
    began = time.process_time()
    from contrastive_nb.sweep import plan
    assert len(plan(toy(tmp_path), grid(dict(product=dict(n=list(range(10_000))))), tmp_path/'out'))==10_000
    assert time.process_time() - began<10


def test_memory_that_runs_out_is_the_runs_own_failure(tmp_path):
    toy(tmp_path, 'import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\nif n==2: hog = bytearray(2**33)')
    assert sorted((s['state'], s['error']) for s in swept(tmp_path).values())==[('done', None), ('failed', 'MemoryError: ')]


def test_a_changed_grid(tmp_path):
    toy(tmp_path)
    first = swept(tmp_path, [1, 2, 3])
    before = content(tmp_path/'out')
    assert [s['attempts'] for s in swept(tmp_path, [1, 2, 3, 4]).values()]==[1]*4                  # more
    assert [s['attempts'] for s in swept(tmp_path, [2, 7]).values()]==[1]*2                        # fewer and others
    assert before.items()<=content(tmp_path/'out').items()                                         # nothing that stood there was touched
    assert sorted(collect(tmp_path/'out').n.values)==[2, 7] and len(other_runs(tmp_path/'out'))==3
    assert sorted(collect(tmp_path/'out', earlier=True).n.values)==[1, 2, 3, 4, 7]
    code, text = cli('status', tmp_path/'out')
    assert '2 done; 3 done of an earlier grid or notebook' in text
    assert [s['attempts'] for s in swept(tmp_path, [1, 2, 3]).values()]==[1]*3 and set(first)       # and back: still done


def test_an_edited_notebook(tmp_path):
    "Edited during the sweep: its runs are of the old code. Started again: new runs, the old ones stay."
    notebook = toy(tmp_path, 'import time; time.sleep(.7)')
    process = start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=list(range(4)))), '-o', tmp_path/'out', '-j', 1)
    assert wait_for(lambda: any(s['state']=='done' for s in states(tmp_path/'out').values()))
    toy(tmp_path, 'n = n + 100')                          # the result would say so
    out, err = process.communicate(timeout=100)
    assert process.returncode==0 and '4 of 4 runs done' in out, err
    assert collect(tmp_path/'out').square.values.tolist()==[0, 1, 4, 9] and len({s['code'] for s in states(tmp_path/'out').values()})==1
    before = content(tmp_path/'out')
    code, out, _ = call('sweep', notebook, '-g', tmp_path/'grid.yaml', '-o', tmp_path/'out')
    assert code==1 and len({s['code'] for s in states(tmp_path/'out').values()})==2              # n isn't the parameter any more: refused by its own result
    assert '4 more in that folder, of an earlier grid or notebook' in out and before.items()<=content(tmp_path/'out').items()


def test_a_moved_folder(tmp_path):
    toy(tmp_path)
    folder = next(iter(swept(tmp_path)))
    shutil.move(tmp_path/'out', tmp_path/'moved')
    assert [s['state'] for s in run_states(tmp_path/'moved').values()]==['done']*2
    assert [s['attempts'] for s in sweep(tmp_path/'toy.ipynb', [dict(n=1), dict(n=2)], tmp_path/'moved', progress=False).values()]==[1, 1]
    assert verify(tmp_path/'moved'/folder.name)[0]=='bit-equal'
    assert not [p for p in content(tmp_path/'moved').items() if str(tmp_path).encode() in p[1]]   # no file says where it was


def pictures(folder, kinds='ab', n=10, shape=(8, 8), splits=('',)):
    "A dataset in a folder, the same each time."
    chance = np.random.default_rng(0)
    for split in splits:
        for kind in kinds:
            (folder/split/kind).mkdir(parents=True, exist_ok=True)
            for i in range(n): Image.fromarray(chance.integers(256, size=shape, dtype=np.uint8)).save(folder/split/kind/f'{i}.png')
    return folder


PRETRAIN = ROOT/'nbs'/'experiments'/'pretrain.ipynb'
TINY = dict(n_epochs=1, batch_size=8, n_measured=4, knn_k=3, projector=[8])


@pytest.mark.slow
def test_data_that_change_between_the_runs_of_a_sweep(tmp_path):
    "The runs stay, each says what it saw, and they don't become one dataset."
    images, points = pictures(tmp_path/'images'), [TINY | dict(dataset=f"folder:{tmp_path/'images'}", seed=s) for s in (0, 1, 2)]
    def go(n): return sweep(PRETRAIN, points[:n], tmp_path/'out', progress=False)
    folders = list(go(2))
    before = collect(tmp_path/'out')
    seen = json.loads(before.attrs['data'])
    assert {k.removeprefix(f'folder:{images} ') for k in seen}=={'train', 'test'} and all(len(v)==64 for v in seen.values())
    whole = (images/'a'/'3.png').read_bytes()
    shutil.copyfile(images/'b'/'3.png', images/'a'/'3.png')             # a training image
    assert [s['attempts'] for s in go(3).values()]==[1, 1, 1]
    with pytest.raises(ValueError, match="all runs must have seen the same data, 'folder:.* train' was .*; .*; remedy: remove result.nc of the runs on outdated data"): collect(tmp_path/'out')
    code, text = cli('collect', tmp_path/'out')
    assert code==2 and text.count('\n')==1 and 'must have seen the same data' in text and not (tmp_path/'out'/'results.nc').exists()
    _, _, changed = verify(folders[0])
    then, now = map(json.loads, changed['data'])
    assert then==seen and now.keys()==seen.keys() and now!=then
    for folder in folders: (folder/'result.nc').unlink()                # as the message says
    assert [s['attempts'] for s in go(3).values()]==[2, 2, 1] and collect(tmp_path/'out').attrs['n_runs']==3
    (images/'a'/'3.png').write_bytes(whole)                             # as it was: another file, the same content
    shutil.rmtree(tmp_path/'out'); go(1)
    assert json.loads(collect(tmp_path/'out').attrs['data'])==seen


def test_code_that_changes_between_the_runs_of_a_sweep(tmp_path):
    "Done runs stay done; status and collect say which code made how many."
    notebook = toy(tmp_path, save=SAVE.replace('import save_dataset', 'import provenance, save_dataset').replace('experiment="toy")', 'experiment="toy", **provenance(folder="/"))'))
    assert call('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out')[0]==0
    shutil.copytree(ROOT/'contrastive_nb', tmp_path/'other'/'contrastive_nb', ignore=shutil.ignore_patterns('__pycache__'))
    with open(tmp_path/'other'/'contrastive_nb'/'sphere.py', 'a') as f: f.write('\n# edited, and not committed\n')
    status, out, err = call('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[1, 2])), '-o', tmp_path/'out', cwd=tmp_path/'other', env=os.environ | dict(PYTHONPATH=str(tmp_path/'other')))
    assert status==0 and [s['attempts'] for s in states(tmp_path/'out').values()]==[1, 1], (out, err)
    packages = [s['provenance']['package'] for s in states(tmp_path/'out').values()]
    said = ', '.join(f'no commit (package {p[:8]}): 1' for p in packages)
    assert packages[0]!=packages[1]
    with pytest.warns(MixedCode, match='the runs of toy were made by different code: '): ds = collect(tmp_path/'out')
    assert set(json.loads(ds.attrs['differing'])['package'])==set(packages)
    assert 'note: the runs were made by different code: ' in (text := cli('status', tmp_path/'out')[1]) and all(part in text for part in said.split(', '))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        code, text = cli('collect', tmp_path/'out')
    assert code==0 and 'note: the runs differ in package: ' in text and all(p in text for p in packages)


# 55: what may lie in a folder

@pytest.mark.parametrize('what', ['zero bytes', 'other parameters', *(pytest.param(w, marks=pytest.mark.slow) for w in ('cut', 'text', 'no attributes'))])
def test_a_result_that_is_none(tmp_path, what):
    toy(tmp_path)
    folder = next(iter(swept(tmp_path)))
    good, path = (folder/'result.nc').read_bytes(), folder/'result.nc'
    if what=='other parameters': shutil.copyfile(list(swept(tmp_path))[1]/'result.nc', path)
    elif what=='no attributes': path.unlink(); xr.Dataset(dict(a=1)).to_netcdf(path)
    else: path.write_bytes(dict(cut=good[:len(good)//2], text=b'hello').get(what, b''))
    bad = path.read_bytes()
    assert [s['state'] for s in run_states(tmp_path/'out').values()].count('done')==1 and collect(tmp_path/'out').attrs['n_absent']==1
    assert [s['attempts'] for s in swept(tmp_path).values()]==[2, 1]
    assert (folder/'set-aside-2.nc').read_bytes()==bad                     # not overwritten
    assert [s['state'] for s in run_states(tmp_path/'out').values()]==['done']*2


def test_a_result_of_a_later_version(tmp_path):
    toy(tmp_path)
    folder = next(iter(swept(tmp_path)))
    ds = xr.load_dataset(folder/'result.nc')
    save_dataset(ds, folder/'result.nc', layout=LAYOUT+1, versions='contrastive-nb 9')
    before = (folder/'result.nc').read_bytes()
    with pytest.raises(ValueError, match=rf'has layout {LAYOUT+1}, .* use the version that wrote it \(contrastive-nb 9\)'): swept(tmp_path)
    assert (folder/'result.nc').read_bytes()==before
    assert f'has layout {LAYOUT+1}' in json.loads(collect(tmp_path/'out').attrs['absent'])[folder.name]


def test_foreign_files_and_links(tmp_path):
    toy(tmp_path)
    folders = list(swept(tmp_path))
    (tmp_path/'out'/'notes.txt').write_text('mine'); (tmp_path/'out'/'backup').mkdir(); shutil.copy(folders[0]/'result.nc', tmp_path/'out'/'backup')
    (folders[0]/'run.json').write_text('{"state": ')                       # half a state
    assert [s['state'] for s in run_states(tmp_path/'out').values()]==['done']*2 and collect(tmp_path/'out').attrs['n_runs']==2
    shutil.rmtree(folders[1]); (tmp_path/'elsewhere').mkdir(); folders[1].symlink_to(tmp_path/'elsewhere')
    with pytest.raises(OSError, match='is a link; a run is written into a real folder'): swept(tmp_path)
    assert not list((tmp_path/'elsewhere').iterdir())


def test_long_names_and_names_that_differ_in_case(tmp_path):
    path = toy(tmp_path, parameters='n = 1\nname = "a"\nout = ""')
    found = sweep(path, [dict(name=name) for name in ('b'*300, 'B'*300, '../../b', 'b/../../c', '\U0001f600')], tmp_path/'out', progress=False)
    assert all(s['state']=='done' for s in found.values()) and len({f.name.lower() for f in found})==5
    assert {p.name for p in tmp_path.iterdir()}=={'toy.ipynb', 'out'}


# 56, 57: what a result may hold (units, dimensions and ragged ends stand in the chapter on results)

def test_a_result_with_nan_and_one_without_a_metric(tmp_path):
    def run(n, **data): save_dataset(xr.Dataset(data, dict(n=n), dict(none=None, yes=True)), tmp_path/f'run{n}'/'result.nc', parameters=dict(n=n), axes=['n'])
    run(1, accuracy=math.nan, loss=1.); run(2, loss=2.); run(3, accuracy=.5, loss=3.)
    ds = collect(tmp_path)
    assert ds.attrs['n_runs']==3 and ds.attrs['n_absent']==0 and ds.loss.values.tolist()==[1, 2, 3] and np.isnan(ds.accuracy.values).tolist()==[True, True, False]


def test_zarr_holds_the_same(tmp_path):
    pytest.importorskip('zarr')
    toy(tmp_path)
    swept(tmp_path)
    for suffix in ('.nc', '.zarr', '.zarr'):   # a second time over the first
        code, text = cli('collect', tmp_path/'out', '-o', tmp_path/f'all{suffix}')
        assert code==0, text
    lazy = xr.open_zarr(tmp_path/'all.zarr', consolidated=False)
    xr.testing.assert_equal(lazy.load(), xr.load_dataset(tmp_path/'all.nc'))
    assert {p.name for p in tmp_path.iterdir()}=={'toy.ipynb', 'out', 'all.nc', 'all.zarr'}


# status and verify

def test_status_for_people_and_machines(tmp_path):
    toy(tmp_path, 'if n==2: raise ValueError("first line\\nlast line")')
    swept(tmp_path)
    code, text = cli('status', tmp_path/'out')
    assert code==0 and '1 done, 1 failed' in text and 'last line' in text and 'first line' not in text
    found = json.loads(cli('status', tmp_path/'out', '--json')[1])
    assert found['count']==dict(done=1, running=0, failed=1, absent=0) and all(s['started'] and s['seconds']>0 and s['provenance']['versions'] for s in found['runs'].values())


@pytest.mark.parametrize('code, verdict', [('', 'bit-equal'), ('import os; n = n*(1 + 1e-9*int.from_bytes(os.urandom(1)))', 'rounding'), ('import time; n = n + time.time_ns()%1009', 'different'), ('import os; n = n + int(os.environ["OMP_NUM_THREADS"])', 'bit-equal')])
def test_verify(tmp_path, code, verdict, monkeypatch):
    save = SAVE.replace("{k: v for k, v in globals().items() if k in PARAMETERS}", 'dict(n=3)').replace('coords=dict(n=n,', 'coords=dict(n=3,').replace('**n', '**3')
    folder, = sweep(toy(tmp_path, code, save=save), [dict(n=3)], tmp_path/'out', progress=False)
    before = content(tmp_path/'out')
    monkeypatch.setenv('OMP_NUM_THREADS', '7')     # the run is repeated with as many threads as it had
    status, text = cli('verify', folder)
    said = dict(rounding='equal within rounding').get(verdict, verdict)
    assert f'{said}: ' in text and status==(verdict=='different') and content(tmp_path/'out')==before, text
    if verdict!='bit-equal': assert 'square: 1 of 1 values, most at its one value: ' in text


# 59: GPUs and memory

@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    code, text = cli('run', PRETRAIN, '-p', 'device', 'cuda', '-o', tmp_path/'out')
    assert code==2 and "device is 'cuda', but this machine has no GPU that PyTorch can use" in text and text.count('\n')==1
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'toy')
    for have, says in (('', 'this machine has 0'), ('toy', 'this machine has 1 (toy)')):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', have)
        code, text = cli('sweep', toy(tmp_path), '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out', '--gpus', 2)
        assert code==2 and 'a run is to have 2 GPUs, ' + says in text and text.count('\n')==1
    assert not (tmp_path/'out').exists()


def test_two_sweeps_on_one_gpu_take_turns(tmp_path):
    see = f'import time; began = time.time(); time.sleep(.5); open({str(tmp_path)!r} + f"/gpu{{n}}", "w").write(f"{{began}} {{time.time()}}")'
    notebook, env = toy(tmp_path, see), os.environ | dict(CUDA_VISIBLE_DEVICES=f'toy-{os.getpid()}')
    both = []
    for i in range(2):
        (tmp_path/str(i)).mkdir()
        both.append(start('sweep', notebook, '-g', grid_file(tmp_path/str(i), product=dict(n=[2*i, 2*i+1])), '-o', tmp_path/str(i)/'out', '--gpus', 1, env=env))
    for process in both:
        out, err = process.communicate(timeout=100)
        assert process.returncode==0, (out, err)
    spans = sorted(tuple(map(float, (tmp_path/f'gpu{n}').read_text().split())) for n in range(4))
    assert all(end<=begin for (_, end), (begin, _) in zip(spans, spans[1:])), spans


@pytest.mark.parametrize('engine', ['warm', pytest.param('papermill', marks=pytest.mark.slow)])
def test_out_of_memory_says_what_to_lower_and_a_smaller_batch_is_another_run(tmp_path, engine):
    hungry = ('import torch\nimport contrastive_nb.train as train\nbackward = train.backward\n'
              'def hungry(encode, loss, x, compute):\n    if len(x)>256: raise torch.OutOfMemoryError("CUDA out of memory")\n    return backward(encode, loss, x, compute)\ntrain.backward = hungry')
    nb = nbformat.read(PRETRAIN, 4)
    nb.cells.insert(next(i for i, c in enumerate(nb.cells) if 'check' in c.metadata.get('tags', ()))+1, nbformat.v4.new_code_cell(hungry))
    nbformat.write(nb, tmp_path/'hungry.ipynb')
    def go(*sizes): return sweep(tmp_path/'hungry.ipynb', [dict(n_epochs=1, n_measured=16, batch_size=b) for b in sizes], tmp_path/'out', engine=engine, progress=False)
    (large, state), = go(256).items()
    assert (state['state'], state['attempts'])==('failed', 1)            # the notebook's own failure: not tried again
    assert state['error'].startswith('MemoryError: fit: out of memory in epoch 1 with 512 views of 1x8x8 at once; lower batch_size=256, or embed the batch in more parts than n_parts=1')
    assert 'lower batch_size=256' in cli('status', tmp_path/'out')[1]
    if engine=='papermill': return
    small = next(f for f in go(256, 128) if f!=large)
    assert {f.name: s['state'] for f, s in ((f, json.loads((f/'run.json').read_text())) for f in (large, small))}=={large.name: 'failed', small.name: 'done'}
    ds = collect(tmp_path/'out')
    assert ds.batch_size.values.tolist()==[128] and list(json.loads(ds.attrs['absent']))==[large.name] and json.loads((small/'run.json').read_text())['parameters']['batch_size']==128


# 61, 62: checkpoints

def trained(path, seed=0, **recipe):
    "Two epochs on noise that leave a checkpoint, or go on from it."
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return fit(make_encoder('small', channels=1, projector=(8,)), images, DHEL(temperature=.3), VIEWS['digits'], Recipe(**dict(n_epochs=2, batch_size=8) | recipe),
               generator=torch.Generator().manual_seed(seed), checkpoint=path, progress=False)


RESUMED = dict(   # what is different -> what is said; the rate of learning is a function of the step, so there is no scheduler whose state could be missing
    seed=(dict(seed=1), {}, 'belongs to another training: seed was 0, is 1'),
    schedule=(dict(schedule='constant'), {}, "belongs to another training: schedule was 'cosine', is 'constant'"),
    epochs=(dict(n_epochs=3), {}, 'belongs to another training: n_epochs was 2, is 3'),
    processes=({}, dict(training=dict(processes=2)), 'belongs to another training: processes was 2, is 1'),
    device=({}, dict(training=dict(device='cuda')), "belongs to another training: device was 'cuda', is 'cpu'"),
    no_history=({}, dict(history=None), 'history missing'),
    no_optimizer=({}, dict(optimizer=None), 'optimizer missing'),
    no_generator=({}, dict(generator=None), 'generator missing'),
    list_of_weights=({}, dict(model=[]), 'model must be a dictionary'),
    no_groups=({}, dict(optimizer=dict(param_groups=[])), 'optimiser and generator of .* must fit this training'))


@pytest.mark.parametrize('case', RESUMED)
def test_a_training_goes_on_as_it_began_or_not_at_all(tmp_path, case):
    now, was, says = RESUMED[case]
    first = trained(path := tmp_path/'checkpoint.pt')
    assert trained(path)==first                                          # nothing is left to do
    state = read_checkpoint(path)
    for key, value in was.items():
        if value is None: del state[key]
        else: state[key] = state[key] | value if value else value
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says): trained(path, **now)
    assert path.read_bytes()==before


def test_another_version_of_torch_goes_on_with_a_warning(tmp_path):
    first = trained(path := tmp_path/'checkpoint.pt')
    torch.save(read_checkpoint(path) | dict(torch='1.0'), path)
    with pytest.warns(UserWarning, match='was written by PyTorch 1.0; with .* the result may differ in the last digits'): assert trained(path)==first


def test_a_checkpoint_cannot_execute_code(tmp_path):
    class Bomb:
        def __reduce__(self): return open, (str(tmp_path/'executed'), 'w')
    model = torch.nn.Linear(2, 2)
    kept = dict(model=model, optimizer=torch.optim.SGD(model.parameters(), .1), generator=torch.Generator(), training={})
    for bad in (dict(model=Bomb()), Bomb()):
        torch.save(bad, tmp_path/'checkpoint.pt')
        with pytest.raises(ValueError, match='whole checkpoint.*(?i:weights.only)'): load_checkpoint(tmp_path/'checkpoint.pt', **kept)
    assert not (tmp_path/'executed').exists()


# 63: datasets

def spoil(folder, how):
    "Do it to a dataset with both splits in a folder, or beside it; the name to load."
    picture, archive = folder/'train'/'a'/'3.png', folder.parent/'cifar10-jpeg.tar.xz'
    if how=='extra class': pictures(folder, 'c', 2, splits=['train'])
    elif how=='empty image': picture.write_bytes(b'')
    elif how=='cut image': picture.write_bytes(picture.read_bytes()[:-30])
    elif how=='16 bits': Image.fromarray(np.full((8, 8), 999, np.uint16)).save(picture)
    elif how=='other size': Image.fromarray(np.zeros((9, 8), np.uint8)).save(picture)
    elif how=='empty folder': shutil.rmtree(folder/'test')
    elif how in ('cut archive', 'traversal', 'absolute', 'link'):
        with tarfile.open(archive, 'w:xz') as t:
            if how=='cut archive': t.add(folder, '.')
            else:
                info = tarfile.TarInfo(dict(traversal='../../harm.png', absolute='/../harm.png', link='train/a/harm.png')[how])
                if how=='link': info.type, info.linkname = tarfile.SYMTYPE, '../../../../harm.png'
                t.addfile(info, io.BytesIO())
        if how=='cut archive': archive.write_bytes(archive.read_bytes()[:-100])
        return 'cifar10-jpeg'
    return f'folder:{folder}'


SPOILT = {'extra class': "got class 'c' in train only", 'empty image': '3.png .the file is empty', 'cut image': 'cannot read the image .*3.png', '16 bits': '8 bits a channel are needed', 'other size': 'remedy: size=32',
          'empty folder': "got class 'a' in train only", 'cut archive': 'must be a whole tar archive', 'traversal': 'must be a whole tar archive of files below its own folder', 'link': 'must be a whole tar archive of files below its own folder'}


@pytest.mark.parametrize('how', SPOILT)
def test_datasets_that_are_refused(tmp_path, how):
    name = spoil(pictures(tmp_path/'data'/'images', splits=['train', 'test']), how)
    with pytest.raises(ValueError, match=SPOILT[how]): prepare(Config(dataset=name, data_dir=str(tmp_path/'data'), batch_size=8))
    assert not list(tmp_path.rglob('harm*')) and not (tmp_path/'data'/'cifar10-jpeg').exists()


def test_a_public_set_with_a_wrong_hash(tmp_path):
    folder = tmp_path/'cifar-10-batches-py'
    folder.mkdir()
    for file in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']: (folder/file).write_bytes(pickle.dumps(dict(data=np.zeros((2, 3072), np.uint8), labels=[0, 1])))
    (folder/'batches.meta').write_bytes(pickle.dumps(dict(label_names=list('abcdefghij'))))
    with pytest.raises(FileNotFoundError, match='CIFAR10 is not in .* or damaged'): load_images('cifar10', root=tmp_path, download=False)


def test_other_data_under_the_same_name_are_told_apart(tmp_path):
    "What nobody can refuse, because it may be meant, changes the hash that goes with each result."
    folder = pictures(tmp_path/'images', splits=['train', 'test'])
    def source(): return load_images(f'folder:{folder}').source.split()[-1]
    found = {'as it was': source()}
    names = [folder/'train'/k/f'{i}.png' for k in 'ab' for i in range(10)]
    content = [n.read_bytes() for n in names]
    for n, c in zip(names, random.Random(0).sample(content, len(content))): n.write_bytes(c)
    found['labels shuffled'] = source()
    for n, c in zip(names, content): n.write_bytes(c)
    assert source()==found['as it was']
    for n in names: Image.open(n).save(n.with_suffix('.jpg'), quality=90); n.unlink()
    found['JPEG'] = source()
    for n, c in zip(names, content): n.with_suffix('.jpg').unlink(); n.write_bytes(c)
    Image.open(names[0]).convert('RGB').save(names[0])
    assert load_images(f'folder:{folder}').x.shape[1]==3                 # one in colour among grey ones: all in colour
    found['colour'] = source()
    names[0].write_bytes(content[0])
    pictures(folder, 'c', 2, splits=['train', 'test'])
    found['a class more in both splits'] = source()
    assert len(set(found.values()))==len(found), found


# several at once, and from elsewhere

def test_runs_that_begin_together_all_belong_to_the_sweep(tmp_path):
    notebook = toy(tmp_path)
    together = [start('run', notebook, '-p', 'n', n, '-o', tmp_path/'out') for n in range(4)]
    for process in together: assert process.wait(120)==0
    assert len(read_json(tmp_path/'out'/'sweep.json')['runs'])==4
    assert collect(tmp_path/'out').n.values.tolist()==[0, 1, 2, 3]


@pytest.mark.parametrize('engine', ['warm', 'papermill'])
def test_a_notebook_executed_from_a_script(tmp_path, engine):
    code = (f"from contrastive_nb.notebook import execute, inject, read_notebook\n"
            f"print(execute(inject(read_notebook({str(toy(tmp_path))!r}), dict(n=3, out={str(tmp_path)!r})), {str(tmp_path/'done.ipynb')!r}, {engine!r}))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode==0 and '(None, False)' in done.stdout, done.stderr
    assert (tmp_path/'done.ipynb').exists() and (tmp_path/'result.nc').exists()


def test_a_report_of_a_zarr_dataset(tmp_path):
    pytest.importorskip('zarr')
    notebook = toy(tmp_path)
    assert call('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[1, 2])), '-o', tmp_path/'out')[0]==0
    assert call('collect', tmp_path/'out', '-o', tmp_path/'all.zarr')[0]==0
    assert call('report', tmp_path/'all.zarr')[0]==0 and (tmp_path/'all.html').exists()
    code, out, err = call('report', tmp_path/'all.zarr', '-o', tmp_path/'all.zarr')
    assert code!=0 and 'would replace the dataset' in out + err


def test_magics_before_a_check_are_for_the_notebook_that_runs(tmp_path):
    notebook = read_notebook(path := toy(tmp_path, '%matplotlib inline\ndisplay(n)\nif n>1: raise ValueError("n is at most 1")'))
    notebook.cells[1].metadata['tags'] = ['check']
    nbformat.write(notebook, path)
    check_points(path, [dict(n=1)])
    with pytest.raises(ValueError, match='n is at most 1'): check_points(path, [dict(n=2)])


def test_a_state_that_is_no_state(tmp_path):
    notebook, grid = toy(tmp_path), grid_file(tmp_path, product=dict(n=[1]))
    assert call('sweep', notebook, '-g', grid, '-o', tmp_path/'out')[0]==0
    for content in ('null', '[]', '{"half'):
        for path in (tmp_path/'out'/'sweep.json', *(tmp_path/'out').glob('*/run.json')): path.write_text(content)
        assert call('sweep', notebook, '-g', grid, '-o', tmp_path/'out')[0]==0
        assert read_json(next((tmp_path/'out').glob('*/run.json')))['state']=='done'
