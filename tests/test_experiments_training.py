"The experiments that train or differentiate: run small, their datasets hold what the theorems say; a false theorem leaves no result."
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from contrastive_nb.analysis import report, theorems
from contrastive_nb.grids import read_grid, resolve
from contrastive_nb.notebook import declared, read_notebook
from contrastive_nb.results import combine
from contrastive_nb.runs import is_done
from contrastive_nb.sweep import plan, sweep

FOLDER = Path(__file__).parents[1]/'nbs'/'experiments'
TOY = dict(
    supervised_gap=dict(n_classes=[2, 5], n_per_class=4, temperatures=[1.0, 0.5], dim=8, n_draws=2, n_trained=[2, 4], projector=[16], n_epochs=1, batch_size=256),
    coupling=dict(objectives=[dict(loss='ntxent', temperature=[.2, .5]), dict(loss='dcl', temperature=.5), dict(loss='dhel', temperature=.5), dict(loss='kcl', kernel='imq', c=.5)],
                  batch_sizes=[4, 16], n_pairs=2, n_companies=3, projector=[16], n_epochs=1, batch_size=256),
    collapse=dict(objectives=[dict(loss='ntxent', temperature=[.2, .5]), dict(loss='dhel', temperature=.5), dict(loss='kcl', kernel='gaussian', t=1.), dict(loss='kcl', kernel='riesz', s=-3.), dict(loss='vicreg')],
                  projector=[16], n_epochs=1, batch_size=256, n_measured=64),
)


def cells(name, values, change=lambda source: source, until=''):
    "Run the notebook's cells here, with `values` over its parameters, to its end or to the cell tagged `until`."
    namespace = {'__name__': name}
    for cell in read_notebook(FOLDER/f'{name}.ipynb').cells:
        if cell.cell_type!='code': continue
        exec(compile(change(cell.source), name, 'exec'), namespace)
        tags = cell.metadata.get('tags', ())
        if 'parameters' in tags: namespace |= values
        if until and until in tags: break
    plt.close('all')
    return namespace


def execute(name, out, change=lambda source: source, **params):
    "The dataset that the notebook writes."
    cells(name, params | dict(out=str(out)), change)
    return xr.load_dataset(Path(out)/'result.nc')


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "The toy run of each notebook, made once."
    made = {}
    def get(name):
        if name not in made: made[name] = execute(name, tmp_path_factory.mktemp(name), **TOY[name])
        return made[name]
    return get


@pytest.mark.parametrize('name', TOY)
def test_run_and_result(name, toy):
    ds, parameters = toy(name), declared(read_notebook(FOLDER/f'{name}.ipynb'))
    assert all(p.help for p in parameters.values())
    assert json.loads(ds.attrs['parameters'])==resolve(parameters, TOY[name])   # so that a runner counts it as done
    assert all(v.attrs['units'] and v.attrs['long_name'] for v in ds.data_vars.values())
    assert ds.attrs['commit'] is not None and ds.attrs['question'] and set(json.loads(ds.attrs['axes'])) <= set(ds.coords)
    assert ds.proven.any() and (ds.margin[ds.proven]>=0).all()
    assert ds.margin.notnull().all() and (ds.margin==np.minimum(ds.measured - ds.low, ds.high - ds.measured)).all()


@pytest.mark.parametrize('name', TOY)
def test_seeds_become_an_axis(name, toy, tmp_path):
    ds, other = toy(name), execute(name, tmp_path, **TOY[name] | dict(seed=1))
    both = combine([ds, other])
    assert both.sizes['seed']==2 and both.margin.notnull().all() and list(both.claim.values)==list(ds.claim.values)
    assert any(not np.array_equal(ds[v], other[v], equal_nan=True) for v in ds.data_vars)
    table = theorems(both).set_index('claim')                                   # and its report shows what held
    assert set(table.index)==set(both.claim.values) and (table.verdict[table.kind=='proven']=='holds').all() and (table.kind=='expected').any()
    assert ((table.verdict=='holds')==(both.margin>=0).all([d for d in both.margin.dims if d!='claim']).to_series()[table.index]).all()
    page = report(both, tmp_path/'report.html').read_text()
    assert page.count('<td class="holds">')==(table.verdict=='holds').sum() and page.count('<td class="does">does not hold')==(table.verdict!='holds').sum()


@pytest.mark.parametrize('name', TOY)
def test_one_seed_is_one_result(name, toy, tmp_path):
    after = cells(name, TOY[name] | dict(out=str(tmp_path)))
    again = xr.load_dataset(tmp_path/'result.nc')
    for v in toy(name).data_vars: np.testing.assert_array_equal(toy(name)[v], again[v], err_msg=v)
    check, = (c.source for c in read_notebook(FOLDER/f'{name}.ipynb').cells if 'check' in c.metadata.get('tags', ()))
    exec(check, after)   # somebody goes back to it: no cell has overwritten a parameter
    assert after['parameters']==json.loads(again.attrs['parameters'])


@pytest.mark.parametrize('name', TOY)
def test_the_published_grid_is_valid(name, tmp_path):
    notebook, points = FOLDER/f'{name}.ipynb', read_grid(FOLDER/'grids'/f'{name}.yaml')
    runs = plan(notebook, points, tmp_path)
    assert len(runs)==len(points) > 1
    for values in runs.values(): cells(name, values, until='check')


REFUSED = dict(
    supervised_gap=[(dict(n_classes=[4]), 'n_classes must be'), (dict(n_classes=[2, 1]), 'n_classes.1 must be greater than or equal to 2, got 1'), (dict(n_classes=[2, 2]), 'n_classes must name no value twice'),
                    (dict(temperatures=[0.]), 'temperatures.0 must be greater than 0'), (dict(n_per_class=1), 'n_per_class must be greater than or equal to 2'), (dict(n_draws=0), 'n_draws must be'),
                    (dict(view_noise=float('nan')), 'view_noise must be'), (dict(n_trained=[2, 11]), 'n_trained must be at most the 10 classes of digits, got 11'),
                    (dict(n_per_class=1000), 'n_per_class must be at most the'), (dict(loss='simclr'), "unknown loss 'simclr'"), (dict(batch_size=5000), 'a batch of 5000 is larger')],
    coupling=[(dict(objectives=[]), 'objectives must be'), (dict(objectives=[dict(loss='vicreg')]), "objectives: loss must be one of infonce, ntxent"), (dict(objectives=[dict(temperature=.5)]), 'got None'),
              (dict(objectives=[dict(loss='dcl', temperature=[.5, 0.])]), 'temperature must be a number > 0'), (dict(objectives=[dict(loss='dcl', tau=.5)]), "unknown parameter 'tau'"),
              (dict(objectives=[dict(loss='dcl', temperature=.5)]*2), 'objectives must name no objective twice'), (dict(batch_sizes=[32, 8]), 'batch_sizes must rise'), (dict(batch_sizes=[8, 2000]), 'batch_sizes must be at most the 1437'),
              (dict(n_pairs=8), 'n_pairs must be less than the smallest batch of 8, got 8'), (dict(n_companies=1), 'n_companies must be'), (dict(lr=0.), 'lr must be')],
    collapse=[(dict(objectives=[]), 'objectives must be'), (dict(objectives=[dict(loss='simclr')]), "objectives: loss must be one of infonce"), (dict(objectives=[dict(loss='kcl', kernel='gaussian', t=[1., -1.])]), 't must be a number > 0, got -1'),
              (dict(objectives=[dict(loss='dhel')]), 'dhel: temperature must be given'), (dict(objectives=[dict(loss='dhel', temperature=[.5, .5])]), 'more than once'), (dict(objectives=['dhel']), 'objectives.0 must be'),
              (dict(n_epochs=0), 'n_epochs must be'), (dict(batch_size=2000), 'a batch of 2000 is larger'), (dict(n_measured=1), 'n_measured must be'), (dict(projector=[]), 'projector must be')],
)


@pytest.mark.parametrize('name', REFUSED)
def test_impossible_values_are_refused_before_any_work(name):
    parameters = declared(read_notebook(FOLDER/f'{name}.ipynb'))
    for values, text in REFUSED[name]:
        with pytest.raises(ValueError, match=re.escape(text)): cells(name, resolve(parameters, values), until='check')


def test_gap_of_a_supervised_loss(toy):
    ds = toy('supervised_gap')
    assert ((ds.gap>=0) | ds.gap.isnull()).all() and not (ds.gap > ds.bound + 1e-12).any() and (ds.trained_gap<=ds.trained_bound).all()
    T, n, C = ds.temperature.values, 4, 5
    np.testing.assert_allclose(ds.paper_bound.sel(kind='uniform', n_classes=C), np.log(1 + n*np.exp(2/T)/(n*C - n)), rtol=1e-12)
    np.testing.assert_allclose(ds.bound.sel(kind='uneven', n_classes=C), np.log(1 + (n-1)*np.exp(2/T)/(3*4 + 2*2 - 4)), rtol=1e-12)   # classes of 4, 2, 4, 2, 4
    np.testing.assert_allclose(ds.gap.sel(kind='collapsed', n_classes=C, draw=0), np.log(1 + (n-1)*np.exp(1/T)/((n*C - n)*np.exp(-1/((C-1)*T)))), rtol=1e-9)


def test_coupling_of_the_softmax_losses_alone(toy):
    ds = toy('coupling')
    loose, tight = ds['loss'].values!='ntxent', ds['loss'].values=='ntxent'
    assert (ds.coupling[loose]<1e-9).all() and (ds.coupling[tight]>1e-7).all()
    np.testing.assert_allclose(ds.pull.sel(objective='dcl(temperature=0.5)'), 2, rtol=1e-9)
    np.testing.assert_allclose(ds.circle_pull.sel(objective='dhel(temperature=0.5)'), 2, rtol=1e-9)
    m, T = 2*3, .5   # NT-Xent at the simplex of 4 points
    np.testing.assert_allclose(ds.optimal_pull.sel(objective='ntxent(temperature=0.5)', batch=4), 2*m/(m + np.exp(4/3/T)), rtol=1e-9)
    force = ds.alignment_force/np.sqrt(1 - ds.positive_cosine**2)   # pull times the sine of the angle between the views
    np.testing.assert_allclose(force, ds.pull, rtol=1e-4)


def test_collapse_follows_every_objective(toy):
    ds = toy('collapse')
    assert ds.effective_rank.dims==('objective', 'epoch') and ds.singular_value.dims==('objective', 'epoch', 'component') and ds.singular_value.sizes['component']==16
    assert (ds.effective_rank.isel(epoch=0)==ds.effective_rank[0, 0]).all()       # one encoder to begin with
    assert len(set(ds.effective_rank.isel(epoch=-1).values))==6                   # and six at the end
    np.testing.assert_allclose((ds.singular_value**2).sum('component'), 64, rtol=1e-5)   # unit rows
    floor = dict(zip(ds.objective.values, ds.floor.values))
    B, T = 256, .5
    np.testing.assert_allclose(floor['ntxent(temperature=0.5)'], np.log1p(2*(B-1)*np.exp(-B/((B-1)*T))), rtol=1e-9)
    np.testing.assert_allclose(floor['kcl(kernel=gaussian(t=1.0), gamma=16.0)'], -2 + 32*np.exp(-2*B/(B-1)), rtol=1e-9)
    assert np.isnan(floor['kcl(kernel=riesz(s=-3.0), gamma=16.0)']) and ds.floor.isnull().sum()==2   # concave kernel, and VICReg
    assert dict(zip(ds.objective.values, ds.temperature.values))['kcl(kernel=gaussian(t=1.0), gamma=16.0)']==.5
    claims = [c for c in ds.claim.values if c.startswith('T=0.5: kcl keeps a larger effective rank than dhel')]
    last = ds.effective_rank.isel(epoch=-1)
    assert ds.measured.sel(claim=claims[0])==last.sel(objective='kcl(kernel=gaussian(t=1.0), gamma=16.0)') - last.sel(objective='dhel(temperature=0.5)')


def test_a_training_that_breaks_down_is_missing_and_said(tmp_path, capsys):
    ds = execute('collapse', tmp_path, **TOY['collapse'] | dict(objectives=[dict(loss='vicreg'), dict(loss='dhel', temperature=.5)], lr=100., n_epochs=2))
    assert ds.finished.values.tolist()==[False, True] and 'vicreg' in capsys.readouterr().out
    assert ds.probe_accuracy.isnull().values.tolist()==[True, False] and ds.train_loss[0].isnull().all() and ds.effective_rank[1].notnull().all()
    assert ds.margin.notnull().all()


FALSE = dict(   # a number in the notebook -> one that is not so
    supervised_gap=('2.643247186', '2.643247286'),
    coupling=('-u/(B*t))', '-u/(B*t*1.0001))'),
    collapse=('effective_rank(simplex(9))', 'effective_rank(simplex(9)) + 1e-8'),
)


@pytest.mark.parametrize('name', FALSE)
def test_a_false_theorem_leaves_no_result(name, tmp_path):
    true, false = FALSE[name]
    with pytest.raises(AssertionError, match='a theorem does not hold'): execute(name, tmp_path, lambda source: source.replace(true, false), **TOY[name])
    assert not list(tmp_path.rglob('*.nc'))


@pytest.mark.slow
@pytest.mark.parametrize('name', TOY)
def test_default_parameters_through_the_runner(name, tmp_path):
    notebook = FOLDER/f'{name}.ipynb'
    (folder, state), = sweep(notebook, [{}], tmp_path, jobs=1, progress=False).items()
    assert state['state']=='done' and is_done(folder, resolve(declared(read_notebook(notebook)), {})), state
