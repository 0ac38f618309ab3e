"The page `same_number`: its calls give the same value and gradient in the other packages, and the table it shows is what they give today."
import json
import os
import re
import subprocess
import sys

import pytest

from test_house import ROOT

NOTEBOOK = ROOT/'nbs'/'tutorials'/'same_number.ipynb'
RUN = '''
import json, sys, types
page = types.ModuleType('page')
for cell in json.load(open(sys.argv[1], encoding='utf-8'))['cells']:
    if cell['cell_type']=='code': exec(''.join(cell['source']), page.__dict__)
json.dump(dict(versions=page.versions, rows=page.rows, errors=[[package, *row] for (package, _), row in page.errors.items()]), open(sys.argv[2], 'w'))
'''
PACKAGES = 'ours', 'lightly', 'pytorch-metric-learning', 'solo-learn'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp('page')/'rows.json'
    done = subprocess.run([sys.executable, '-c', RUN, str(NOTEBOOK), str(out)], cwd=NOTEBOOK.parent, env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize('package', PACKAGES)
def test_same_value_and_gradient(page, package):
    if package!='ours' and package not in page['versions']: pytest.skip(f'{package} is not installed; the page says how')
    rows = [row for row in page['rows'] if row[0]==package]
    assert len(rows)>=5
    for _, call, value, off, off_grad in rows: assert max(off, off_grad) <= (1e-5 if '.float()' in call else 1e-12), call


def test_the_table_shown_is_todays(page):
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    shown = [dict(re.findall(r'^\| [^|]+ \| `(.+?)` \| (-?[\d.]+) \|', ''.join(o['data']['text/markdown']), re.M))
             for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})][0]
    assert shown.keys()=={call for _, call, *_ in page['rows']}   # made with all packages present
    for package, call, value, *_ in page['rows']:
        if value is not None: assert float(shown[call])==pytest.approx(value, rel=1e-5 if '.float()' in call else 1e-8), call


def test_ours_keeps_its_digits_at_low_temperatures(page):
    (ours, *errors), *others = page['errors']
    assert ours=='ours' and max(errors) < 1e-5
    for _, *row in others: assert row[-1] > 100*errors[-1]   # what the page says of them
