"Each chapter and tutorial runs top to bottom in a process of its own; each experiment runs at toy size through papermill."
import os
import subprocess
import sys

import papermill
import pytest
import xarray as xr

from test_house import CHAPTERS, GROUND, NOTEBOOKS, ROOT

TUTORIALS = [p for p in NOTEBOOKS if p.parent.name in ('tutorials', 'findings') and p.stem!='same_number']   # test_same_number.py runs that one
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent.name=='experiments' and p.stem=='pretrain']   # the others: test_experiments.py
RUN = 'import sys; from pathlib import Path; from nbdev.test import test_nb; ok, seconds = test_nb(Path(sys.argv[1]), skip_flags=["notest", "slow", "cuda"]); sys.exit(not ok)'


SLOW = 'sweep_on_a_cluster',   # starts a cluster and five commands
MARKED = [pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem.endswith(SLOW) else ()) for p in (*GROUND, *CHAPTERS, *TUTORIALS, ROOT/'nbs'/'index.ipynb')]


@pytest.mark.parametrize('notebook', MARKED)
def test_chapter(notebook):
    env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg')
    done = subprocess.run([sys.executable, '-c', RUN, str(notebook)], cwd=notebook.parent, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, (done.stdout + done.stderr)[-4000:]


FEWER = dict(pretrain=dict(n_epochs=2))   # its defaults are those of the demo


@pytest.mark.parametrize('notebook', EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_by_papermill_itself(notebook, tmp_path):
    papermill.execute_notebook(notebook, tmp_path/'executed.ipynb', parameters=dict(out=str(tmp_path/'run')) | FEWER.get(notebook.stem, {}), kernel_name='python3', progress_bar=False)
    ds = xr.load_dataset(tmp_path/'run'/'result.nc')
    assert ds.attrs['commit'] is not None and ds.attrs['parameters'] and ds.attrs['axes']
    assert all('units' in v.attrs and 'long_name' in v.attrs for v in ds.data_vars.values())
