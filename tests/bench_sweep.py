"""What a run costs beside its notebook's own cells, torch, torchvision, seaborn and xarray imported: python tests/bench_sweep.py [N]

Overhead is the time from asking for a run until its files stand there, less the time of the cells that do the notebook's work; the imports are no work."""
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from contrastive_nb.runs import close_warm, run_one
from toys import toy

IMPORTS = 'from contrastive_nb.compat import torchvision\nfrom contrastive_nb.experiment import Config, pretrain\nimport matplotlib.pyplot as plt, numpy as np, seaborn as sns, torch, xarray as xr'
WORK = 'import time; time.sleep(.3)'


def overheads(engine, n):
    "Seconds beside the work of `n` runs, one after the other."
    with tempfile.TemporaryDirectory() as folder:
        notebook, found = toy(folder, IMPORTS, WORK), []
        for i in range(n + 1):
            began = time.perf_counter()
            state = run_one(notebook, dict(n=i), Path(folder)/f'run{i}', engine=engine, threads=1, git=('', False))
            took = time.perf_counter() - began
            assert state['state']=='done', state
            cells = json.loads((Path(folder)/f'run{i}'/'notebook.ipynb').read_text())['cells']
            found.append(took - sum(c['metadata']['papermill']['duration'] for c in cells[3:]))
        close_warm()
    return found[0], found[1:]   # the first one starts the warm process


def main(n):
    for engine, runs in (('warm', n), ('papermill', max(2, n//5))):
        first, rest = overheads(engine, runs)
        print(f'{engine:9}: first {first:.2f} s, then median {statistics.median(rest):.2f} s of {len(rest)} runs ({min(rest):.2f}-{max(rest):.2f})')


if __name__=='__main__': main(int(sys.argv[1]) if sys.argv[1:] else 20)
