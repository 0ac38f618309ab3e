"Toy experiments for the tests of sweeps: notebooks that run in no time, and ways to end them."
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import xarray as xr

ROOT = Path(__file__).parents[1]
SAVE = ('import json\nimport numpy as np\nimport xarray as xr\nfrom contrastive_nb.record import save_dataset\n'
        'values = {k: v for k, v in globals().items() if k in PARAMETERS}\n'
        'ds = xr.Dataset(dict(square=((), float(n*n), dict(units="1")), curve=("epoch", np.arange(4.)**n, dict(units="1")), seconds=((), 0., dict(units="s"))), coords=dict(n=n, epoch=np.arange(4)))\n'
        'save_dataset(ds, f"{out}/result.nc", parameters=values, axes=["n"], experiment="toy")')


def toy(folder, *code, parameters='n = 1\nout = ""', name='toy.ipynb', save=SAVE, after=()):
    "A notebook that executes `code`, saves a dataset and executes `after`; its path."
    names = [line.split('=')[0].split(':')[0].strip() for line in parameters.splitlines() if line.split('=')[0].split(':')[0].strip()!='out']
    cells = [nbformat.v4.new_code_cell(parameters, metadata=dict(tags=['parameters'])), *map(nbformat.v4.new_code_cell, code),
             nbformat.v4.new_code_cell(save.replace('PARAMETERS', repr(names))), *map(nbformat.v4.new_code_cell, after)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'))), Path(folder)/name)
    return Path(folder)/name


def grid_file(folder, **spec):
    (Path(folder)/'grid.yaml').write_text(json.dumps(spec))
    return Path(folder)/'grid.yaml'


def command(*words): return [sys.executable, '-c', 'from contrastive_nb.cli import main; main()', *map(str, words)]


def start(*words, **options):
    "The command in a process of its own; its standard error goes to a pipe unless told otherwise."
    return subprocess.Popen(command(*words), **(dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) | options))


def call(*words, **options):
    done = subprocess.run(command(*words), **(dict(capture_output=True, text=True, cwd=ROOT, timeout=300) | options))
    return done.returncode, done.stdout, done.stderr


def states(out): return {p.parent.name: json.loads(p.read_text()) for p in Path(out).glob('*/run.json')}


def wait_for(condition, seconds=60):
    for _ in range(int(seconds*50)):
        if condition(): return True
        time.sleep(.02)
    return False


def family(process):
    "All descendants of a process."
    try: return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error: return []


def kill_all(process):
    "What a power cut does: the process and all it has started end at once."
    for p in [*family(process), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.Error): p.send_signal(signal.SIGKILL)
    process.wait()


def leftovers(folder):
    "Processes that still have something of this folder open or in their command."
    found = []
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if p.pid!=os.getpid() and any(f.path.startswith(str(folder)) for f in p.open_files()): found.append(p)
    return found


def same(a, b):
    "Whether two collected datasets are equal bit for bit, times apart."
    drop = [k for k, v in a.data_vars.items() if v.attrs.get('units') in ('s', '1/s', 'bytes')]
    a, b = (ds.drop_vars(drop).load() for ds in (a, b))
    xr.testing.assert_equal(a, b)
    return all(a[k].values.tobytes()==b[k].values.tobytes() for k in a.variables if a[k].dtype!=object)
