"Killed at any instant, a sweep goes on where it was, and its dataset is that of a sweep that nobody disturbed."
import contextlib
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import xarray as xr

from contrastive_nb.process import Warm
from contrastive_nb.record import write_json
from contrastive_nb.runs import read_state
from toys import call, family, grid_file, kill_all, leftovers, same, start, states, toy, wait_for

POINTS = list(range(6))


def work(folder, slow=.05):
    "A notebook whose cells take a while, and its grid."
    pause = f'import time; time.sleep({slow})'
    return toy(folder, pause, pause), grid_file(folder, product=dict(n=POINTS))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    notebook, grid = work(folder)
    began = time.monotonic()
    assert call('sweep', notebook, '-g', grid, '-o', folder/'out')[0]==0
    took = time.monotonic() - began
    assert call('collect', folder/'out')[0]==0
    return xr.load_dataset(folder/'out'/'results.nc'), took


def victims(process, kind):
    "Who is to be killed: everything, the sweep, the warm process, a run or a kernel."
    if kind=='everything' or kind=='sweep': return []
    below = family(process)
    depth = {'warm': 1, 'run': 2, 'kernel': 3}[kind]
    def level(p):
        steps = 0
        while p.pid!=process.pid: p, steps = p.parent(), steps + 1
        return steps
    found = []
    for p in below:
        with contextlib.suppress(psutil.Error, AttributeError):
            if level(p)==depth: found.append(p)
    return found


def killed(folder, kind, moment):
    "Start the sweep, kill somebody after so many seconds, and let what is left come to its end."
    notebook, grid = folder/'toy.ipynb', folder/'grid.yaml'
    process = start('sweep', notebook, '-g', grid, '-o', folder/'out')
    with contextlib.suppress(Exception): process.wait(moment)
    if process.poll() is None:
        if kind=='everything': kill_all(process)
        elif kind=='sweep': process.kill()
        else:
            for p in victims(process, kind)[:1]:
                with contextlib.suppress(psutil.Error): p.kill()
    return process.communicate(timeout=120)


@pytest.mark.parametrize('moments', [2, pytest.param(50, marks=pytest.mark.slow)], ids=['2 moments', '50 moments'])
def test_killed_at_random_moments(tmp_path, undisturbed, moments):
    whole, took = undisturbed
    chance, kinds = random.Random(moments), ['everything', 'sweep', 'warm', 'run', 'kernel']
    for i in range(moments):
        folder = tmp_path/str(i)
        folder.mkdir()
        work(folder)
        for again in range(2 if moments==50 else 1):   # killed, started again, and killed once more
            killed(folder, kind := kinds[(i + again)%len(kinds)], moment := chance.uniform(.2, 1.1)*took)
        code, out, err = call('sweep', folder/'toy.ipynb', '-g', folder/'grid.yaml', '-o', folder/'out')
        assert code==0 and f'{len(POINTS)} of {len(POINTS)} runs done' in out, (i, kind, moment, out, err)
        assert call('collect', folder/'out')[0]==0
        assert same(xr.load_dataset(folder/'out'/'results.nc'), whole), (i, kind, moment)
        assert all(s['state']=='done' for s in states(folder/'out').values())
        assert not [p for p in (folder/'out').rglob('*.tmp*')], (i, kind, moment)
    assert wait_for(lambda: not leftovers(tmp_path), 20), leftovers(tmp_path)


@pytest.mark.parametrize('where', ['before the rename', 'after the rename'])
def test_power_cut_around_the_rename_of_a_result(tmp_path, where):
    "The process that writes result.nc dies on either side of the rename; the state still says running."
    cut = ('import contrastive_nb.record as record, os, pathlib\nreplace = os.replace\n'
           'def cut(a, b):\n    if pathlib.Path(b).name!="result.nc" or pathlib.Path(MARK).exists(): return replace(a, b)\n'
           '    pathlib.Path(MARK).touch()\n' + ('    replace(a, b)\n' if where=='after the rename' else '') + '    os.killpg(0, 9)\n'
           'record.os.replace = cut').replace('MARK', repr(str(tmp_path/'cut')))
    notebook = toy(tmp_path, cut)
    process = start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[3])), '-o', tmp_path/'out')
    assert wait_for((tmp_path/'cut').exists)
    kill_all(process)
    result, = (tmp_path/'out').glob('toy-*')
    assert (result/'result.nc').exists()==(where=='after the rename')
    code, out, _ = call('sweep', notebook, '-g', tmp_path/'grid.yaml', '-o', tmp_path/'out')
    assert code==0 and '1 of 1 runs done' in out
    state, = states(tmp_path/'out').values()
    assert state['state']=='done' and not list(result.glob('.*.tmp*'))
    if where=='after the rename': assert state['attempts']==1   # it had been done


def test_what_a_killed_run_had_begun_to_write_goes(tmp_path):
    "Its result stood there, and it was killed while it wrote its notebook or its state."
    notebook, grid = work(tmp_path)
    assert call('sweep', notebook, '-g', grid, '-o', tmp_path/'out')[0]==0
    first, *_ = sorted((tmp_path/'out').glob('toy-*'))
    state = read_state(first)
    write_json(first/'run.json', state | dict(state='running'))
    for name in ('.notebook.tmp.ipynb', '.notebook.ipynb.abc.tmp', '.run.json.abc.tmp'): (first/name).write_text('{"cel')
    (first/'.weights.abc.tmp').mkdir()
    (first/'.weights.abc.tmp'/'half').touch()
    assert call('sweep', notebook, '-g', grid, '-o', tmp_path/'out')[0]==0
    assert read_state(first)['state']=='done' and read_state(first)['attempts']==state['attempts']
    assert not list(first.glob('.*.tmp*')) and (first/'notebook.ipynb').stat().st_size>100


def test_a_killed_kernel_is_tried_again_and_not_for_ever(tmp_path):
    once = f'import os, pathlib\nmark = pathlib.Path({str(tmp_path)!r})/"mark"\nif n==1 and not mark.exists(): mark.touch(); os.kill(os.getpid(), 9)\nif n==2: os.kill(os.getpid(), 9)'
    code, out, _ = call('sweep', toy(tmp_path, once), '-g', grid_file(tmp_path, product=dict(n=[1, 2])), '-o', tmp_path/'out')
    assert code==1 and '1 of 2 runs done' in out and 'the kernel was killed by signal 9 (SIGKILL); a system that is out of memory does this: lower jobs' in out
    assert sorted((s['state'], s['attempts']) for s in states(tmp_path/'out').values())==[('done', 2), ('failed', 3)]


@pytest.mark.parametrize('code, says', [('raise ValueError("out of luck")', 'ValueError: out of luck'), ('import sys; sys.exit(0)', 'without a result'), ('import os; os._exit(3)', 'exit code 3'),
                                        pytest.param('import os; os.abort()', 'signal 6 (SIGABRT)', marks=pytest.mark.slow), pytest.param('raise KeyboardInterrupt', 'KeyboardInterrupt', marks=pytest.mark.slow)])
@pytest.mark.parametrize('engine', ['warm', 'papermill'])
def test_what_the_notebook_did_is_final(tmp_path, code, says, engine):
    if engine=='papermill' and says!='exit code 3': pytest.skip('one of them is enough for the slow engine')
    status, out, err = call('sweep', toy(tmp_path, code), '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out', '--engine', engine)
    assert status==1 and says in out and 'Traceback' not in out + err, (out, err)
    state, = states(tmp_path/'out').values()
    assert (state['state'], state['attempts'])==('failed', 1)


@pytest.mark.parametrize('engine', ['warm', pytest.param('papermill', marks=pytest.mark.slow)])
def test_a_result_does_not_count_if_a_later_cell_fails(tmp_path, engine):
    "What the notebook wrote is kept under another name, nobody counts it, and the next start runs the notebook again."
    answer = f'import pathlib\nif not pathlib.Path({str(tmp_path/"known")!r}).exists(): raise ValueError("first line\\nno answer")'
    again = 'sweep', toy(tmp_path, after=[answer]), '-g', grid_file(tmp_path, product=dict(n=[2])), '-o', tmp_path/'out', '--engine', engine
    for attempt in 1, 2:
        status, out, err = call(*again)
        assert status==1 and '0 of 1 runs done' in out and 'no answer' in out, (out, err)
        state, = states(tmp_path/'out').values()
        assert (state['state'], state['attempts'], state['error'].splitlines()[-1])==('failed', attempt, 'no answer')
        folder, = (tmp_path/'out').glob('toy-*')
        assert [p.name for p in sorted(folder.glob('*.nc'))]==[f'set-aside-{k}.nc' for k in range(1, attempt+1)]
    assert '1 failed' in call('status', tmp_path/'out')[1] and 'holds no finished run' in call('collect', tmp_path/'out')[2]
    (tmp_path/'known').touch()
    assert call(*again)[0]==0 and xr.load_dataset(folder/'result.nc').square.item()==4
    assert next(iter(states(tmp_path/'out').values()))['attempts']==3


@pytest.mark.parametrize('after, says', [pytest.param('import sys; sys.exit(3)', 'SystemExit: 3', marks=pytest.mark.slow), ('import os; os._exit(3)', 'exit code 3'), pytest.param('import os; os.abort()', 'signal 6 (SIGABRT)', marks=pytest.mark.slow),
                                         ('while True: pass', 'over its time limit of 5 s')])
def test_other_ways_to_fail_after_the_result(tmp_path, after, says):
    status, out, err = call('sweep', toy(tmp_path, after=[after]), '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out', '--timeout', 5)
    assert status==1 and says in out and not list((tmp_path/'out').glob('*/result.nc')) and len(list((tmp_path/'out').glob('*/set-aside-1.nc')))==1, (out, err)


def test_a_kill_after_the_result_takes_nothing_from_it(tmp_path):
    "Nothing was wrong with the notebook: its dataset is whole, and it isn't made a second time."
    status, out, err = call('sweep', toy(tmp_path, after=['import os; os.kill(os.getpid(), 9)']), '-g', grid_file(tmp_path, product=dict(n=[1])), '-o', tmp_path/'out')
    state, = states(tmp_path/'out').values()
    assert status==0 and (state['state'], state['attempts'])==('done', 1), (out, err)


def alive(pid):
    with contextlib.suppress(psutil.Error): return psutil.Process(pid).status()!='zombie'
    return False


@pytest.mark.parametrize('engine', ['warm', pytest.param('papermill', marks=pytest.mark.slow)])
def test_the_time_limit_kills_all_that_the_run_started(tmp_path, engine):
    spawn = f'import os, subprocess, sys, time\nchildren = [subprocess.Popen(["sleep", "300"], start_new_session=s).pid for s in (False, True)]\nopen({str(tmp_path/"pids")!r}, "w").write(f"{{os.getpid()}} {{children[0]}} {{children[1]}}")\nwhile n==2: pass'
    notebook = toy(tmp_path, spawn)
    code, out, err = call('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[2])), '-o', tmp_path/'out', '--timeout', 12 if engine=='papermill' else 6, '--engine', engine)
    assert code==1 and 'over its time limit of' in out and 'Traceback' not in out + err, (out, err)
    pids = list(map(int, (tmp_path/'pids').read_text().split()))
    assert wait_for(lambda: not any(map(alive, pids)), 10)
    assert next(iter(states(tmp_path/'out').values()))['attempts']==1


SPAWN = 'import os, subprocess, sys, time; child = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=subprocess.DEVNULL).pid'
DAEMON = f'{SPAWN}; daemon = int(subprocess.check_output([sys.executable, "-c", {SPAWN + "; print(child)"!r}])); print(child, daemon, flush=True)'

@pytest.mark.skipif(sys.platform!='linux', reason='Linux alone lets a process adopt orphans')
@pytest.mark.parametrize('end, why', [('pass', 'returned'), ('1/0', 'crashed'), ('os._exit(3)', 'crashed'), ('os.kill(os.getpid(), 9)', 'killed'), ('time.sleep(60)', 'timeout')])
def test_nothing_that_a_task_has_started_outlives_it(tmp_path, end, why):
    "Neither a process in a session of its own nor a daemon, and another task's stay."
    log = tmp_path/'other.txt'
    with ThreadPoolExecutor(1) as pool, Warm() as warm:
        other = pool.submit(warm.run, 'builtins:exec', f'{DAEMON}; time.sleep(60)', log=log)
        assert wait_for(lambda: log.exists() and log.read_text().endswith('\n'))
        ended = warm.run('builtins:exec', f'{DAEMON}; {end}', timeout=5 if why=='timeout' else 60, log=tmp_path/'log.txt')
        assert ended.why==why
        assert wait_for(lambda: not any(alive(int(p)) for p in ended.log.splitlines()[0].split()), 10)
        theirs = [int(p) for p in log.read_text().split()]
        assert len(theirs)==2 and all(map(alive, theirs))
        assert wait_for(lambda: len(psutil.Process(warm.process.pid).children())==1, 10)   # the other task, and no zombie
        warm.stop()
        assert other.result().why=='stopped' and wait_for(lambda: not any(map(alive, theirs)), 10)


def interrupted(tmp_path, *signals):
    "A sweep of six slow runs that gets signals, each a second after the one before; exit code, what was said, seconds until the end."
    notebook = toy(tmp_path, f'import time, pathlib; pathlib.Path({str(tmp_path)!r}, "begun").touch(); time.sleep(4)')
    process = start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=POINTS)), '-o', tmp_path/'out', start_new_session=True)
    assert wait_for((tmp_path/'begun').exists)
    for number in signals:
        time.sleep(.7)
        os.killpg(process.pid, number)   # as a terminal sends it: to the whole group
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert 'Traceback' not in out + err, err
    return process.returncode, err, time.monotonic() - began


def test_ctrl_c_once_finishes_what_is_running(tmp_path):
    code, err, _ = interrupted(tmp_path, signal.SIGINT)
    assert code==130 and 'interrupt again to stop at once' in err and 'the same command goes on from here' in err
    assert [s['state'] for s in states(tmp_path/'out').values()]==['done', 'done']


@pytest.mark.parametrize('signals, code', [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143)], ids=['Ctrl-C twice', 'SIGTERM'])
def test_stopping_at_once(tmp_path, signals, code):
    status, err, seconds = interrupted(tmp_path, *signals)
    assert status==code and seconds<3, (status, err, seconds)
    found = states(tmp_path/'out').values()
    assert 1<=len(found)<=2 and all(s['state']=='interrupted' for s in found)
    assert '6 absent' in call('status', tmp_path/'out')[1]
    assert not leftovers(tmp_path/'out')
