"The comparison with published numbers: each verdict on made-up runs whose verdict is known, and with no runs at all."
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from contrastive_nb.notebook import read_notebook

NOTEBOOK = Path(__file__).parents[1]/'nbs'/'experiments'/'reproduction.ipynb'
COLUMNS = 'quantity,dataset,encoder,loss,against,batch_size,n_epochs,value,error,protocol,source,how'
SEEDS = np.array([-1., 0, 1])


def made(path, device='NVIDIA A100-SXM4-80GB', dataset='cifar10', losses=('ntxent', 'dhel'), accuracy=.88, spread=.001, gap=2., **scalars):
    "A collected dataset: losses x batch 256 x three seeds; DHEL's effective rank is `gap` larger."
    dims = 'objective', 'dataset', 'encoder', 'batch_size', 'seed'
    def full(per_seed, per_loss=0): return dims, (np.add.outer(np.arange(len(losses))*per_loss, per_seed))[:, None, None, None, :]
    seconds = np.broadcast_to(full(100 + SEEDS)[1][..., None], (len(losses), 1, 1, 1, 3, 4))
    ds = xr.Dataset(dict(probe_accuracy=full(accuracy + spread*SEEDS), effective_rank=full(20 + SEEDS, gap), peak_memory=full(1e9 + 0*SEEDS), seconds=((*dims, 'epoch'), seconds)),
                    coords=dict(objective=[f'{l}(temperature=0.5)' for l in losses], loss=('objective', list(losses)), dataset=[dataset], encoder=['resnet18'], batch_size=[256], seed=[0, 1, 2], epoch=[1, 2, 3, 4],
                                n_epochs=4, lr=.3, views='cifar', temperature=.5) | scalars)
    ds.assign_attrs(device=device).to_netcdf(path)


def verdicts(folder, *lines):
    "What the notebook says to each line of a published file: verdict and reason."
    (folder/'published.csv').write_text('\n'.join([COLUMNS, *lines]))
    namespace = {'__name__': 'reproduction', 'display': lambda x: None}
    for cell in read_notebook(NOTEBOOK).cells:
        if cell.cell_type!='code': continue
        exec(cell.source.replace('root = project_root()', f'root = Path({str(folder)!r})'), namespace)
        if 'parameters' in cell.metadata.get('tags', ()): namespace |= dict(results='*.nc', published='published.csv', out=str(folder/'run'))
    plt.close('all')
    ds = xr.load_dataset(folder/'run'/'result.nc')
    assert ds.attrs['experiment']=='reproduction' and all(v.attrs['units'] and v.attrs['long_name'] for v in ds.data_vars.values())
    return list(zip(ds.verdict.values.tolist(), ds.because.values.tolist())), ds


def line(quantity='probe_accuracy', value=.88, error=0., loss='ntxent', protocol='', against='', B=256): return f'{quantity},cifar10,resnet18,{loss},{against},{B},4,{value},{error},{protocol},someone,table'


def test_verdicts_follow_from_intervals(tmp_path):
    made(tmp_path/'a.nc')
    half = 4.302653*.001/3**.5   # Student's, two degrees of freedom
    said, ds = verdicts(tmp_path, line(), line(value=.88 + .99*half), line(value=.88 + 1.01*half), line(value=.88 + 1.01*half, error=.1*half), line(B=32),
                        line('effective_rank', 0, loss='dhel', against='ntxent'), line('training_seconds', 401, error=20), line('peak_memory', 2e9, error=1e8))
    assert [v for v, _ in said]==['agrees', 'agrees', 'differs', 'agrees', 'not measured', 'agrees', 'agrees', 'differs']
    assert not any(why for _, why in said)
    np.testing.assert_allclose(ds.half_width[0], half, rtol=1e-6)
    np.testing.assert_allclose([*ds.measured[[0, 5, 6]]], [.88, 2, 400])   # a difference of losses paired by seed, and epochs added up
    np.testing.assert_allclose([*ds.value[[0, 7]], *ds.measured[[0, 7]]], [.88, 2, .88, 1])
    assert ds.unit[[0, 5, 6, 7]].values.tolist()==['fraction', '1', 's', 'GB']


def test_another_protocol_is_not_comparable_and_says_why(tmp_path):
    made(tmp_path/'a.nc')
    said, _ = verdicts(tmp_path, line(protocol='lr=0.03;grey=0.2'), line(protocol='grey=0.1'), line('training_seconds', 400, protocol='device=A100'), line('training_seconds', 400, protocol='device=RTX A6000'), line(protocol='scored=best epoch'),
                       line(loss='dhel', protocol='repulsion=half'), line(protocol='probe_training=lee2025'), line('training_seconds', 400, protocol='timed=with a kNN evaluation after each epoch'))
    assert said==[('not comparable', 'lr 0.3, not 0.03'), ('not comparable', 'grey 0.2, not 0.1'), ('agrees', ''), ('not comparable', 'device NVIDIA A100-SXM4-80GB, not RTX A6000'), ('not comparable', 'scored last epoch, not best epoch'),
                  ('not comparable', 'repulsion full, not half'), ('not comparable', 'probe_training unknown, not lee2025'), ('not comparable', 'timed training alone, not with a kNN evaluation after each epoch')]


@pytest.mark.parametrize('change, why', [(dict(dataset='cifar10-jpeg'), 'dataset cifar10-jpeg, not cifar10'), (dict(n_train=5000), '5000 training images, not all'), (dict(n_epochs=3), 'n_epochs 3, not 4'), (dict(seed=[0]), 'one seed')], ids=['jpeg', 'subset', 'epochs', 'seed'])
def test_other_runs_are_not_comparable(tmp_path, change, why):
    made(tmp_path/'a.nc', **{k: v for k, v in change.items() if k!='seed'})
    if 'seed' in change:
        ds = xr.load_dataset(tmp_path/'a.nc')
        ds.isel(seed=[0]).to_netcdf(tmp_path/'a.nc')
    said, ds = verdicts(tmp_path, line())
    assert said==[('not comparable', why)] and ds.measured.notnull().all()   # the number is shown all the same


def test_the_nearest_runs_are_taken(tmp_path):
    made(tmp_path/'a.nc', accuracy=.5, lr=.1, n_train=100)
    made(tmp_path/'b.nc', accuracy=.88)
    made(tmp_path/'c.nc', accuracy=.7, evaluate_on='validation')   # for choosing, not for comparing
    assert verdicts(tmp_path, line(protocol='lr=0.3'))[0]==[('agrees', '')]
    made(tmp_path/'d.nc', losses=('ntxent',), temperature=.2)
    with xr.open_dataset(tmp_path/'d.nc') as ds: other = ds.load().assign_coords(objective=['ntxent(temperature=0.2)'])
    other.to_netcdf(tmp_path/'d.nc')
    assert verdicts(tmp_path, line(protocol='lr=0.3'), line(protocol='temperature=0.5'))[0]==[('not comparable', 'several parameters of one loss'), ('agrees', '')]


def test_a_run_by_another_optimiser_or_probe_is_not_the_published_one(tmp_path):
    published = [l for l in (NOTEBOOK.parents[2]/'data'/'published.csv').read_text().splitlines() if l.startswith('probe_accuracy,cifar10,resnet18,ntxent,,256,')]
    same = dict(n_epochs=200, weight_decay=1e-4, n_warmup=10, momentum=.9, optimizer='sgd', schedule='cosine', stem='cifar', projector='512-128', probe_training='lee2025')
    for k, other in dict(momentum=.5, optimizer='adamw', schedule='constant', projector='64-64', probe_training='lbfgs').items():
        made(tmp_path/'a.nc', accuracy=.882, **same | {k: other})
        assert verdicts(tmp_path, *published)[0]==[('not comparable', f'{k} {other}, not {same[k]}')]
    made(tmp_path/'a.nc', accuracy=.882, **same)
    assert verdicts(tmp_path, *published)[0]==[('agrees', '')]


def test_an_ordering(tmp_path):
    made(tmp_path/'a.nc', gap=-2.)
    assert verdicts(tmp_path, line('effective_rank', 0, loss='dhel', against='ntxent'))[0]==[('differs', '')]
    with xr.open_dataset(tmp_path/'a.nc') as ds: noisy = ds.load()
    noisy['effective_rank'] = noisy.effective_rank + xr.DataArray(np.outer([0, 1], 10*SEEDS), dims=('objective', 'seed'))
    noisy.to_netcdf(tmp_path/'a.nc')
    assert verdicts(tmp_path, line('effective_rank', 0, loss='dhel', against='ntxent'))[0]==[('undecided', '')]


def test_without_runs_nothing_is_measured(tmp_path):
    lines = (NOTEBOOK.parents[2]/'data'/'published.csv').read_text().splitlines()
    assert lines[0]==COLUMNS
    said, _ = verdicts(tmp_path, *lines[1:])
    assert {v for v, _ in said}=={'not measured'}
    table = pd.read_csv(NOTEBOOK.parents[2]/'data'/'published.csv', keep_default_na=False)
    assert (table.source.str.len()>0).all() and {'probe_accuracy', 'effective_rank', 'negative_cosine_var', 'training_seconds', 'peak_memory'} <= {*table.quantity}
