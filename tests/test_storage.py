"""Bad requests, bad files, bad times: each has one defined outcome, no done run is lost and none is counted that is not done.

The numbers are those of the list of bad inputs: 41-45 and 60 (kills and signals) stand in test_sweep_kills, the rest here."""
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner

from contrastive_nb.cli import main
from contrastive_nb.record import LAYOUT, lock, read_json, save_dataset, to_json, write_json
from contrastive_nb.results import collect, other_runs, run_states, verify
from contrastive_nb.sweep import grid, sweep
from contrastive_nb.checkpoint import load_checkpoint
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
    import pickle
    got = pickle.loads((tmp_path/'got').read_bytes())
    meant = HARD | dict(small=float(np.float32(.1)), whole=7, flag=False, pair=[1, 2], path='a/b')
    assert to_json(got)==to_json(meant) and {k: type(v) for k, v in got.items()}=={k: type(v) for k, v in meant.items()}
    assert math.copysign(1, got['nested']['a b'][1][''][1])==-1
    assert list(sweep(path, [HARD], tmp_path/'out {x} é', progress=False).values())[0]['attempts']==1    # and it is known again


@pytest.mark.parametrize('kind, text, value', [('str', '007', '007'), ('str', '1_000', '1_000'), ('str', 'false', 'false'), ('str', '', ''), ('str', 'None', 'None'), ('float', '1e-3', .001), ('float', '-inf', -math.inf),
                                               ('int', '7', 7), ('bool', 'false', False), ('list', '[1, a, 1e-3]', [1, 'a', .001]), ('dict', '{t: 0.5, k: no}', dict(t=.5, k='no')), ('float', '12e5678', None),
                                               ('int', '1_000', None), ('int', '1e3', None), ('int', '1.0', None), ('bool', '1', None), ('list', '3', None), ('dict', '{1: 2}', None)])
def test_values_from_the_command_line(kind, text, value):
    from contrastive_nb.sweep import TYPES, Parameter, resolve
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


# 55: what may lie in a folder

@pytest.mark.parametrize('what', ['zero bytes', 'cut', 'text', 'other parameters', 'no attributes'])
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


@pytest.mark.parametrize('code, verdict', [('', 'bit-equal'), ('import os; n = n*(1 + 1e-9*int.from_bytes(os.urandom(1)))', 'rounding'), ('import time; n = n + time.time_ns()%1009', 'different')])
def test_verify(tmp_path, code, verdict):
    save = SAVE.replace("{k: v for k, v in globals().items() if k in PARAMETERS}", 'dict(n=3)').replace('coords=dict(n=n,', 'coords=dict(n=3,').replace('**n', '**3')
    folder, = sweep(toy(tmp_path, code, save=save), [dict(n=3)], tmp_path/'out', progress=False)
    before = content(tmp_path/'out')
    status, text = cli('verify', folder)
    said = dict(rounding='equal within rounding').get(verdict, verdict)
    assert f'{said}: ' in text and status==(verdict=='different') and content(tmp_path/'out')==before, text
    if verdict!='bit-equal': assert 'square: 1 of 1 values, most at its one value: ' in text


# 59: OOM is a failure of that configuration, never retried as another; 61, 62: checkpoints

def test_a_checkpoint_cannot_execute_code(tmp_path):
    class Bomb:
        def __reduce__(self): return open, (str(tmp_path/'executed'), 'w')
    model = torch.nn.Linear(2, 2)
    kept = dict(model=model, optimizer=torch.optim.SGD(model.parameters(), .1), generator=torch.Generator(), training={})
    for bad in (dict(model=Bomb()), Bomb()):
        torch.save(bad, tmp_path/'checkpoint.pt')
        with pytest.raises(ValueError, match='whole checkpoint.*(?i:weights.only)'): load_checkpoint(tmp_path/'checkpoint.pt', **kept)
    assert not (tmp_path/'executed').exists()
