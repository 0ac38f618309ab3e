"Executed copies of the experiment notebooks, made with their defaults and kept until they or what they use change."
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docments import modules
from filelock import FileLock

RUN = 'from contrastive_nb.cli import main; main()'


def code(notebook): return '\n'.join(''.join(c['source']) for c in notebook['cells'] if c['cell_type']=='code')


def has_parameters(notebook): return any('parameters' in c['metadata'].get('tags', ()) for c in notebook['cells'])


def used(source, package):
    "The files of the package at folder `package` that `source` imports, and that those import."
    found, todo = set(), [source]
    while todo:
        new = {f for name in modules(todo.pop(), package.name) if (f := package/f'{name}.py').is_file()} - found
        found |= new
        todo += [f.read_text(encoding='utf-8') for f in new]
    return sorted(found)


def ingredients(notebook, root, package):
    "What a run depends on: the notebook, the modules it uses, the pinned versions, and the data it may read."
    files = [notebook, *used(code(json.loads(notebook.read_text(encoding='utf-8'))), root/package), root/'constraints.txt']
    files += sorted(f for pattern in ('*.csv', 'results/*') for f in (root/'data').glob(pattern))
    return [f for f in files if f.is_file()]


def fingerprint(notebook, root, package): return hashlib.sha256(b''.join(f.name.encode() + f.read_bytes() for f in ingredients(notebook, root, package))).hexdigest()[:12]


def execute(notebook, folder, root):
    "One run with the defaults in `folder`; seconds that it took."
    started, part = time.time(), folder.with_suffix('.part')
    shutil.rmtree(part, ignore_errors=True)
    env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='module://matplotlib_inline.backend_inline',
                            PYTHONPATH=os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH')))))
    done = subprocess.run([sys.executable, '-c', RUN, 'run', str(notebook), '-o', str(part)], cwd=root, env=env, capture_output=True, text=True)
    if done.returncode or not next(part.glob('*/notebook.ipynb'), None):
        raise RuntimeError(f'build: {notebook.name} does not run with its defaults: {(done.stdout + done.stderr).strip()[-2000:]}')
    part.rename(folder)
    return time.time() - started


def executed(root, package, cache, jobs=2):
    "{page: executed notebook} of the experiments that declare parameters; runs what `cache` does not have."
    wanted = {f: cache/f'{f.stem}-{fingerprint(f, root, package)}' for f in sorted((root/'nbs/experiments').glob('*.ipynb'))
              if has_parameters(json.loads(f.read_text(encoding='utf-8')))}
    if not wanted: return {}
    cache.mkdir(parents=True, exist_ok=True)

    def run(file):
        seconds = execute(file, wanted[file], root)
        print(f'  {file.stem}: {seconds:.0f} s', flush=True)
    with FileLock(cache/'.lock'):       # a second build waits, and finds them executed
        missing = [f for f, folder in wanted.items() if not folder.is_dir()]
        if missing: print(f'{len(wanted) - len(missing)} of {len(wanted)} experiments are executed; running {len(missing)}, up to a minute each', flush=True)
        with ThreadPoolExecutor(jobs) as pool: list(pool.map(run, missing))
        for old in {f for name in wanted for f in cache.glob(f'{name.stem}-*') if len(f.name)==len(name.stem)+13} - {*wanted.values()}: shutil.rmtree(old)
    return {f'experiments/{f.stem}': next(folder.glob('*/notebook.ipynb')) for f, folder in wanted.items()}
