"The same sweep by any executor: Python's own, Dask, submitit, MPI; the same files by either engine."
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from contrastive_nb.results import collect
from contrastive_nb.sweep import dask_executor, sweep
from toys import ROOT, call, grid_file, same, start, states, toy, wait_for

POINTS = [dict(n=n) for n in (1, 2, 3)]


@pytest.fixture(scope='module')
def plain_sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain')
    sweep(toy(folder), POINTS, folder/'out', progress=False)
    return collect(folder/'out')


def check(out, whole, found):
    assert [s['state'] for s in found.values()]==['done']*3, found
    assert same(collect(out), whole)


def test_a_process_pool(tmp_path, plain_sweep):
    with ProcessPoolExecutor(2, get_context('spawn')) as pool: found = sweep(toy(tmp_path), POINTS, tmp_path/'out', executor=pool, progress=False)
    check(tmp_path/'out', plain_sweep, found)


def test_papermills_own_kernels_leave_the_same_files(tmp_path, plain_sweep):
    found = sweep(toy(tmp_path), POINTS, tmp_path/'out', engine='papermill', progress=False)
    check(tmp_path/'out', plain_sweep, found)
    warm = sweep(toy(tmp_path), POINTS, tmp_path/'warm', progress=False)
    for cold_folder, warm_folder in zip(found, warm):
        assert cold_folder.name==warm_folder.name and {p.name for p in cold_folder.iterdir()}=={p.name for p in warm_folder.iterdir()}
        cold, hot = (json.loads((f/'notebook.ipynb').read_text()) for f in (cold_folder, warm_folder))
        def bare(nb): return [(c['cell_type'], c['source'], c.get('outputs'), c.get('execution_count'), c['metadata'].get('tags')) for c in nb['cells']]
        assert bare(cold)==bare(hot)


def test_a_figure_is_shown_as_papermill_shows_it(tmp_path):
    code = 'import matplotlib.pyplot as plt\nplt.plot([1, 2]);', 'import pandas as pd; print("said"); pd.DataFrame(dict(a=[1]))', 'await __import__("asyncio").sleep(0)'
    kinds = {}
    for engine in ('warm', 'papermill'):
        folder, = sweep(toy(tmp_path, *code), POINTS[:1], tmp_path/engine, engine=engine, progress=False)
        kinds[engine] = [[(o['output_type'], sorted(o.get('data', {}))) for o in c['outputs']] for c in json.loads((folder/'notebook.ipynb').read_text())['cells']]
    assert kinds['warm']==kinds['papermill'] and ('display_data', ['image/png', 'text/plain']) in kinds['warm'][2]


def test_no_run_touches_the_next(tmp_path):
    "Whatever one run changes in its process, the next starts as if it were the first."
    spoil = ('import os, random, sys, warnings\nimport numpy as np\nseen = [np.geterr()["over"], os.getcwd(), os.environ.get("SPOILT"), hasattr(np, "spoilt"), sys.getrecursionlimit()]\n'
             'drawn = [np.random.rand(), random.random()]\nnp.seterr(over="raise"); os.chdir("/"); os.environ["SPOILT"] = "1"; np.spoilt = True; sys.setrecursionlimit(5000)\n'
             f'open({str(tmp_path)!r} + f"/seen{{n}}", "w").write(repr(seen)); open({str(tmp_path)!r} + f"/drawn{{n}}", "w").write(repr(drawn))\nos.chdir(seen[1])')
    found = sweep(toy(tmp_path, spoil), POINTS, tmp_path/'out', jobs=1, progress=False)
    assert all(s['state']=='done' for s in found.values()), found
    assert len({(tmp_path/f'seen{n}').read_text() for n in (1, 2, 3)})==1
    assert len({(tmp_path/f'drawn{n}').read_text() for n in (1, 2, 3)})==3   # a fresh interpreter draws its own numbers


def test_threads_are_divided(tmp_path):
    threads = f'import os; open({str(tmp_path)!r} + "/threads", "w").write(os.environ["OMP_NUM_THREADS"])'
    sweep(toy(tmp_path, threads), POINTS[:1], tmp_path/'out', jobs=len(os.sched_getaffinity(0)), progress=False)
    assert (tmp_path/'threads').read_text()=='1'


def test_a_gpu_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'toy-0,toy-1')
    see = f'import os, time; began = time.time(); time.sleep(.5); open({str(tmp_path)!r} + f"/gpu{{n}}", "w").write(f"{{os.environ[\'CUDA_VISIBLE_DEVICES\']}} {{began}} {{time.time()}}")'
    sweep(toy(tmp_path, see), [dict(n=n) for n in range(4)], tmp_path/'out', jobs=4, gpus=1, progress=False)
    used = [(tmp_path/f'gpu{n}').read_text().split() for n in range(4)]
    assert {u[0] for u in used}=={'toy-0', 'toy-1'}
    for gpu in ('toy-0', 'toy-1'):
        spans = sorted((float(a), float(b)) for name, a, b in used if name==gpu)
        assert all(end<=begin for (_, end), (begin, _) in zip(spans, spans[1:]))   # never two at a time on one


# Dask

@pytest.fixture
def cluster(tmp_path):
    "A scheduler and two workers, as somebody would start them from a shell; the scheduler's file, and the workers."
    pytest.importorskip('distributed')
    file = tmp_path/'scheduler.json'
    def dask(*words): return subprocess.Popen([sys.executable, '-m', 'distributed.cli.' + words[0], *words[1:]], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    scheduler = dask('dask_scheduler', '--host', '127.0.0.1', '--port', '0', '--no-dashboard', '--scheduler-file', str(file))
    workers = [dask('dask_worker', '--scheduler-file', str(file), '--nthreads', '1', '--no-dashboard', '--resources', 'GPU=1', '--nworkers', '1', '--local-directory', str(tmp_path)) for _ in range(2)]
    assert wait_for(file.exists)
    yield file, workers
    for process in (*workers, scheduler):
        process.terminate()
        try: process.wait(10)
        except subprocess.TimeoutExpired: process.kill(); process.wait()


def test_dask_from_the_command_line(cluster, tmp_path, plain_sweep):
    file, _ = cluster
    code, out, err = call('sweep', toy(tmp_path), '-g', grid_file(tmp_path, product=dict(n=[1, 2, 3])), '-o', tmp_path/'out', '--scheduler', file)
    assert code==0 and '3 of 3 runs done' in out, err
    assert same(collect(tmp_path/'out'), plain_sweep)
    code, _, err = call('sweep', toy(tmp_path), '-g', tmp_path/'grid.yaml', '-o', tmp_path/'two', '--scheduler', file, '--gpus', 2)
    assert code==2 and 'offers 2 GPU; start them with --resources GPU=2' in err and not (tmp_path/'two').exists()


@pytest.mark.slow
def test_a_killed_dask_worker_loses_nothing(cluster, tmp_path, plain_sweep):
    file, workers = cluster
    notebook = toy(tmp_path, f'import pathlib, time; pathlib.Path({str(tmp_path)!r}, f"begun{{n}}").touch(); time.sleep(3)')
    process = start('sweep', notebook, '-g', grid_file(tmp_path, product=dict(n=[1, 2, 3])), '-o', tmp_path/'out', '--scheduler', file)
    assert wait_for(lambda: list(tmp_path.glob('begun*')))
    os.killpg(workers[0].pid, 9)   # the worker and its nanny
    out, err = process.communicate(timeout=240)
    assert process.returncode==0 and '3 of 3 runs done' in out, err
    assert same(collect(tmp_path/'out'), plain_sweep)


def test_no_scheduler_is_one_line(tmp_path):
    pytest.importorskip('distributed')
    (tmp_path/'none.json').write_text('{"address": "tcp://127.0.0.1:9"}')
    with pytest.raises(OSError, match='no Dask scheduler answers'): dask_executor(str(tmp_path/'none.json'))
    with pytest.raises(FileNotFoundError, match='no scheduler file localhost:8786; an address is written tcp://host:port'): dask_executor('localhost:8786')


# others

@pytest.mark.slow
def test_submitit(tmp_path, plain_sweep):
    submitit = pytest.importorskip('submitit')
    executor = submitit.AutoExecutor(folder=tmp_path/'jobs', cluster='local')
    executor.update_parameters(timeout_min=5, cpus_per_task=1)
    check(tmp_path/'out', plain_sweep, sweep(toy(tmp_path), POINTS, tmp_path/'out', executor=executor, progress=False))


def test_mpi(tmp_path, plain_sweep):
    pytest.importorskip('mpi4py')
    script = tmp_path/'mpi.py'
    toy(tmp_path)
    script.write_text('from mpi4py.futures import MPIPoolExecutor\nfrom contrastive_nb.sweep import sweep\n'
                      f'if __name__=="__main__":\n    with MPIPoolExecutor(1) as pool: states = sweep({str(tmp_path/"toy.ipynb")!r}, {POINTS!r}, {str(tmp_path/"out")!r}, executor=pool, progress=False)\n'
                      '    print([s["state"] for s in states.values()])')
    if subprocess.run([sys.executable, '-c', 'import mpi4py.MPI'], capture_output=True).returncode: pytest.skip('mpi4py finds no MPI library')
    done = subprocess.run([shutil.which('mpiexec') or pytest.skip('no mpiexec'), '-n', '2', sys.executable, '-m', 'mpi4py.futures', str(script)], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode==0 and "['done', 'done', 'done']" in done.stdout, done.stderr
    assert same(collect(tmp_path/'out'), plain_sweep)


@pytest.mark.slow
def test_a_warm_run_costs_less_than_a_second():
    from bench_sweep import overheads
    _, warm = overheads('warm', 9)
    _, cold = overheads('papermill', 2)
    assert statistics.median(warm)<1.0 and statistics.median(warm)<statistics.median(cold)/2, (warm, cold)
