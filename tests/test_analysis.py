"Tables and pages of any dataset that `collect` may leave: one run, runs that form no grid, settings that are None, values that are missing."
import json

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from contrastive_nb.analysis import readable, report, summary, theorems
from contrastive_nb.cli import main
from contrastive_nb.results import combine


def run(objective='dhel(temperature=0.3)', batch_size=16, seed=0, n_train=None, accuracy=None, spectrum=(2., 1.)):
    values = dict(probe_accuracy=((), batch_size + seed/10 if accuracy is None else accuracy), singular_value=('component', list(spectrum)))
    coords = dict(objective=objective, batch_size=batch_size, seed=seed, loss=objective.split('(')[0], n_train=-1 if n_train is None else n_train, component=[0, 1])
    ds = xr.Dataset({k: (*v, dict(units='1', long_name=k.replace('_', ' '))) for k, v in values.items()}, coords)
    return ds.assign_attrs(axes=json.dumps(['objective', 'batch_size', 'n_train', 'seed']), experiment='toy', parameters=json.dumps({k: v for k, v in coords.items() if k!='component'}), protocol='{}')

GRID = [run(o, b, s) for o in ('dhel(temperature=0.3)', 'kcl(gamma=16.0)') for b in (16, 64) for s in (0, 1, 2)]


def text(path): return path.read_text(encoding='utf-8')


def test_one_run(tmp_path):
    ds = combine([run()])
    assert readable(summary(ds, ['probe_accuracy'])).values.tolist()==[['16.0', 1]]
    assert '<td>16.0</td>' in text(report(ds, tmp_path/'report.html'))


def test_a_flat_dataset_has_the_table_of_the_grid(tmp_path):
    grid, flat = (summary(combine(GRID, flat=flat), ['probe_accuracy']) for flat in (False, True))
    assert grid.index.names==['objective', 'batch_size'] and grid['probe_accuracy', 'n'].tolist()==[3]*4
    assert grid.sort_index().equals(flat.sort_index())
    assert 'dhel' in text(report(combine(GRID[:5], flat=True), tmp_path/'report.html'))


def test_a_setting_may_be_none():
    ds = combine([run(n_train=n, seed=s) for n in (32, None) for s in (0, 1)])
    ds = ds.assign_coords(n_train=np.array([None if n==-1 else n for n in ds.n_train.values], object))
    assert len(summary(ds, ['probe_accuracy']))==2


@pytest.mark.parametrize('what', [dict(accuracy=np.nan), dict(spectrum=(0., 0.)), dict(accuracy=np.nan, spectrum=(np.nan, np.nan))], ids=['no accuracy', 'collapsed', 'nothing'])
def test_what_has_no_value_is_not_drawn(tmp_path, what):
    page = text(report(combine([run(seed=s, **what) for s in (0, 1)]), tmp_path/'report.html'))
    assert page.count('<figure')==(0 if len(what)==2 else 1)


def test_the_claims_of_one_run(tmp_path):
    one = xr.Dataset({k: ('claim', [v], dict(units='1', long_name=k)) for k, v in dict(measured=.5, low=0., high=1., margin=.5).items()}, dict(claim=['it holds'], proven=('claim', [True])), dict(axes='[]'))
    assert 'holds in' not in theorems(one)
    one.to_netcdf(tmp_path/'one.nc')
    done = CliRunner().invoke(main, ['report', str(tmp_path/'one.nc')])
    assert done.exit_code==0 and 'holds: it holds: 0.5 (allowed 0 to 1; proven)' in done.output, done.output
