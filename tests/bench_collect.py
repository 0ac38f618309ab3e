"How long it takes to collect, write and read back 500 and 10,000 runs like those of the pre-training notebook: python tests/bench_collect.py [N ...]"
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from contrastive_nb.experiment import AXES, VARIABLES, Config
from contrastive_nb.grids import plain
from contrastive_nb.record import provenance, save_dataset, to_json, write_json
from contrastive_nb.results import collect
from contrastive_nb.runs import stamp

PER_EPOCH = [n for n in VARIABLES if not n.endswith(('accuracy', 'singular_value')) and n!='peak_memory']


def write_runs(folder, n, epochs=20):
    "A grid of `n` runs: one is written, the others are copies with labels and numbers of their own."
    draw, config = np.random.default_rng(0), Config()
    scalars = {k: v for k, v in config.scalars.items() if k not in ('device', 'data_dir', 'keep_checkpoints')} | dict(keep_encoder=False)   # a truth value too
    data = {k: ('epoch', draw.random(epochs), dict(zip(('long_name', 'units'), VARIABLES[k]))) for k in PER_EPOCH} | {k: ((), draw.random(), dict(units=VARIABLES[k][1])) for k in ('knn_accuracy', 'probe_accuracy', 'peak_memory')}
    data |= {'singular_value': ('component', draw.random(64)), 'feature_singular_value': ('feature', draw.random(128))}
    template = xr.Dataset(data, scalars | dict(objective='ntxent(temperature=0.5)', temperature=.5, epoch=1 + np.arange(epochs), component=1 + np.arange(64), feature=1 + np.arange(128)), dict(axes=to_json(AXES), protocol='{}'))
    save_dataset(template, first := folder/'first.nc', experiment='pretrain', parameters=config.model_dump(), **provenance())
    seeds = max(1, n//100)
    for i in range(n):
        (run := folder/f'run{i}').mkdir()
        shutil.copyfile(first, run/'result.nc')
        with netCDF4.Dataset(run/'result.nc', 'r+') as nc:
            values = dict(seed=i%seeds, batch_size=2**(i//seeds%10), temperature=.1*(1 + i//seeds//10))
            for name, value in values.items(): nc[name][...] = value
            nc['objective'][...] = np.array(f"ntxent(temperature={values['temperature']:.1f})", object)
            nc['probe_accuracy'][...] = i
            parameters = plain(config.model_dump() | dict(seed=values['seed'], batch_size=values['batch_size'], loss_params=dict(temperature=values['temperature'])))
            nc.setncattr('parameters', to_json(parameters))
        write_json(run/'run.json', dict(state='done', parameters=parameters, result=stamp(run/'result.nc')))
    write_json(folder/'sweep.json', dict(runs={f'run{i}': json.loads((folder/f'run{i}'/'run.json').read_text())['parameters'] for i in range(n)}))


def main(counts):
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            write_runs(Path(folder), n)
            began = time.perf_counter(); ds = collect(folder); collected = time.perf_counter() - began
            assert ds.attrs['n_runs']==n and set(ds.probe_accuracy.values.ravel())==set(range(n))
            began = time.perf_counter(); save_dataset(ds, Path(folder)/'results.nc'); written = time.perf_counter() - began
            began = time.perf_counter(); xr.load_dataset(Path(folder)/'results.nc'); read = time.perf_counter() - began
            print(f'{n:6} runs: collect {collected:.1f} s, write {written:.1f} s, read {read:.1f} s; {ds.nbytes/2**20:.0f} MiB, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10:.0f} MiB')


if __name__=='__main__': main([int(a) for a in sys.argv[1:]] or [500, 10_000])
