"The theory notebooks without training at reduced size: what its dataset says, what it refuses, and that a theorem that fails fails the run."
import html
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from contrastive_nb.cli import main
from contrastive_nb.grids import read_grid, resolve
from contrastive_nb.notebook import declared, read_notebook
from contrastive_nb.results import collect
from contrastive_nb.runs import run_one
from contrastive_nb.sweep import check_points, sweep

FOLDER = Path(__file__).parents[1]/'nbs'/'experiments'
NOTEBOOKS = [FOLDER/f'{name}.ipynb' for name in ('minimisers', 'batch_size', 'asymptotics', 'excess_separation')]   # the others: test_experiments_training.py
SMALL = dict(   # what makes them take seconds
    minimisers=dict(n_points=4, dim=4, half=2, n_polygon=5, n_per_class=2, n_starts=6),
    batch_size=dict(n_images=128, n_rounds=8, n_exact=5),
    asymptotics=dict(dims=[3, 8], sizes=[4, 8, 16, 32, 64], n_optimised=16, n_starts=1),
    excess_separation=dict(dims=[3, 6, 7], n_starts=2))
OTHER = dict(minimisers=dict(n_points=3, dim=3, n_polygon=6, temperature=.3), batch_size=dict(n_images=256, n_exact=4), asymptotics=dict(sizes=[4, 8, 16, 32], seed=1), excess_separation=dict(n_images=9, batch_size=3, dims=[2, 8]))   # beside them
BAD = dict(
    minimisers=[(dict(n_points=10), 'n_points must be at most 9 in 8 dimensions, got 10'), (dict(temperature=0.), 'temperature must be greater than 0, got 0.0'), (dict(n_classes=9), 'n_classes must be at most 8')],
    batch_size=[(dict(n_images=1000), 'n_images must be a power of two, got 1000'), (dict(dim=1), 'dim must be greater than or equal to 2, got 1'), (dict(noise=-.1), 'noise must be greater than or equal to 0')],
    asymptotics=[(dict(dims=[8, 3]), 'dims must rise and be 2 or more, got [8, 3]'), (dict(dims=[3.]), 'dims.0 must be a valid integer, got 3.0'), (dict(n_optimised=2), 'n_optimised must reach at least two of the sizes')],
    excess_separation=[(dict(batch_size=3), 'batch_size must divide n_images = 8 and be smaller, got 3'), (dict(dims=[2, 7]), 'dims must rise from 3 or more'), (dict(dims=[3]), 'the last of dims must be at least 7')])


def execute(notebook, folder, **params):
    values = resolve(declared(read_notebook(notebook)), params)
    state = run_one(notebook, values, folder)
    return state, values


def check(folder, values):
    "A dataset as a sweep expects it, in which everything holds."
    ds = xr.load_dataset(folder/'result.nc')
    assert json.loads(ds.attrs['parameters'])==values and ds.attrs['commit'] is not None and ds.attrs['question'] and json.loads(ds.attrs['axes'])
    assert all('units' in v.attrs and v.attrs['long_name'] for v in ds.data_vars.values())
    assert all(d in ds.coords for d in ds.dims)   # by which runs of other sizes align
    if 'margin' in ds: assert ds.sizes['claim']>=3 and (ds.margin>=0).all()
    return ds


def minimisers(ds):
    assert (ds.reached.where(ds.proved==1, 1)==1).all() and ds.proved.sum()>=40
    simplex = ds.sel(arrangement='simplex')
    assert simplex.reached.sel(objective='dclw')==1                                                           # no theorem, but there
    assert (simplex.reached.sel(objective=['spectral', 'vrns', 'siglip b=0', 'kcl riesz s=-3'])==0).all()
    assert float(simplex.effective_rank.sel(objective='spectral')) > 3.99 and float(simplex.effective_rank.sel(objective='kcl riesz s=-3')) < 1.01


def batch_size(ds):
    drift = ds.exact_loss - ds.exact_loss.isel(small_batch=-1)
    assert abs(drift.where(ds.is_mean_over_pairs==1)).max() < 1e-9
    assert (abs(drift.isel(small_batch=0)).where(ds.is_mean_over_pairs==0, drop=True) > 1e-3).all()           # all others move


def asymptotics(ds):
    best = ds.best_loss.sel(objective='energy').dropna('n_images')
    assert (best.diff('n_images') > 0).all() and (best <= ds.limit.sel(objective='energy')).all()
    assert abs(ds.best_wasserstein.sel(objective='energy', dim=8, n_images=4) - ds.simplex_wasserstein.sel(dim=8, n_images=4)) < 1e-4


def excess_separation(ds):
    assert abs(ds.variance_end.sel(end='largest') - .21768707).max() < 1e-6 and abs(ds.variance_end.sel(end='least', dim=[6, 7]) - .02721088).max() < 1e-6
    assert ds.negative_cosine_var.sel(training='shuffled').max() < 1e-6 < ds.negative_cosine_var.sel(training='fixed').min()


SAYS = dict(minimisers=minimisers, batch_size=batch_size, asymptotics=asymptotics, excess_separation=excess_separation)   # what must stand in the dataset, beside verdicts that hold


@pytest.mark.parametrize('stem', SMALL)
def test_at_reduced_size(stem, tmp_path):
    "Two runs of different sizes, as in the published grids: in their dataset every number stands where it stood in its run."
    points = [SMALL[stem], SMALL[stem] | OTHER[stem]]
    states = sweep(FOLDER/f'{stem}.ipynb', points, tmp_path, jobs=2, progress=False)
    assert all(s['state']=='done' for s in states.values()), [s['error'] for s in states.values()]
    runs = [check(folder, state['parameters']) for folder, state in states.items()]
    SAYS[stem](runs[0])
    ds = collect(tmp_path)
    assert ds.attrs['n_runs']==2
    for run in runs:
        for name, v in run.data_vars.items():
            place = {d: run[d] for d in ds[name].dims if d in run.coords}
            np.testing.assert_array_equal(ds[name].sel(place).transpose(*v.dims), v, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_with_its_defaults(notebook, tmp_path):
    state, values = execute(notebook, tmp_path)
    assert state['state']=='done', state['error']
    check(tmp_path, values)


@pytest.mark.parametrize('stem', BAD)
def test_impossible_values_are_refused_before_any_work(stem):
    parameters = declared(read_notebook(FOLDER/f'{stem}.ipynb'))
    assert all(p.help for p in parameters.values())
    with pytest.raises(ValueError) as error: check_points(FOLDER/f'{stem}.ipynb', [resolve(parameters, params) for params, _ in BAD[stem]])
    for _, text in BAD[stem]: assert text in str(error.value)


@pytest.mark.parametrize('stem', SMALL)
def test_grids_fit_their_notebook(stem):
    parameters = declared(read_notebook(FOLDER/f'{stem}.ipynb'))
    points = [resolve(parameters, p) for p in read_grid(FOLDER/'grids'/f'{stem}.yaml')]
    assert len(points)>=4   # more than one setting, more than one seed
    check_points(FOLDER/f'{stem}.ipynb', points)


def test_a_theorem_that_fails_fails_the_run(tmp_path):
    nb = read_notebook(FOLDER/'excess_separation.ipynb')
    for cell in nb.cells: cell.source = cell.source.replace('n*(n - m)/((m - 1)*(n - 1)**2)', '(n - 1)*(n - m)/((m - 1)*(n - 1)**2)')   # a wrong upper end
    nbformat.write(nb, tmp_path/'wrong.ipynb')
    state, _ = execute(tmp_path/'wrong.ipynb', tmp_path/'run', **SMALL['excess_separation'])
    assert state['state']=='failed' and 'does not hold: all batches on one simplex: the upper end' in state['error']
    assert not (tmp_path/'run'/'result.nc').exists() and (tmp_path/'run'/'notebook.ipynb').exists()


def test_a_sweep_is_collected_along_its_axes(tmp_path):
    sweep(FOLDER/'batch_size.ipynb', [SMALL['batch_size'] | dict(seed=s) for s in (0, 1)], tmp_path, jobs=2, progress=False)
    ds = collect(tmp_path)
    assert ds.sizes['seed']==2 and ds.attrs['n_absent']==0 and (ds.margin>=0).all()
    assert not np.array_equal(*ds.expected_loss.sel(objective='infonce'))
    said = [CliRunner().invoke(main, words) for words in (['collect', str(tmp_path)], ['report', str(tmp_path/'results.nc')])]
    assert [s.exit_code for s in said]==[0, 0], said
    page = (tmp_path/'results.html').read_text()
    assert 'Claims and what was measured' in page and ds.attrs['question'] in page and all(str(name) in page for name in ds.data_vars if name not in ('measured', 'low', 'high', 'margin'))
    for claim in ds.claim.values: assert f'holds: {claim}: ' in said[1].output and html.escape(claim).replace('&#x27;', '&#39;').replace('&quot;', '&#34;') in page
    assert said[1].output.count('in 2 of 2 runs')==ds.sizes['claim'] and 'does not hold' not in said[1].output
