"The house is in order: modules are what the notebooks export, notebooks are clean, chapters lean on earlier ones only."
import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import xarray as xr

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob('nbs/[0-9][0-9]_*.ipynb'))
GROUND = tuple(ROOT/'nbs'/f'{name}.ipynb' for name in ('compat', 'gpu', 'record', 'process', 'notebook', 'optim', 'checkpoint'))
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
TOP = {'settings.ini', 'pyproject.toml', 'constraints.txt', 'Makefile', 'nbs', 'contrastive_nb', 'data', 'tests', '.github', '.ci', 'README.md',
       'CHANGELOG.md', 'CITATION.cff', 'LICENSE', '.gitignore', '.gitattributes'}


def module(chapter): return chapter.stem.split('_', 1)[1] if chapter in CHAPTERS else chapter.stem


@pytest.fixture
def copy(tmp_path):
    "The sources alone, to export or clean without touching the checkout."
    for name in ('nbs', 'contrastive_nb'):
        shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    return tmp_path


def nbdev(command, folder):
    env = {k: v for k, v in os.environ.items() if k!='IN_TEST'}
    done = subprocess.run([str(Path(sys.executable).parent/command)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr


def tree(folder, pattern): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob(pattern) if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}


def test_modules_equal_a_fresh_export(copy):
    for path in (copy/'contrastive_nb').glob('*.py'):
        if path.name!='__init__.py': path.unlink()
    nbdev('nbdev_export', copy)
    assert tree(copy/'contrastive_nb', '*.py')==tree(ROOT/'contrastive_nb', '*.py'), 'run make sync'


def test_notebooks_are_clean(copy):
    nbdev('nbdev_clean', copy)
    dirty = [str(p) for p, content in tree(copy/'nbs', '*.ipynb').items() if content!=(ROOT/'nbs'/p).read_bytes()]
    assert not dirty, f'run make sync: {dirty}'


def test_experiments_carry_no_outputs():
    for path in (ROOT/'nbs'/'experiments').glob('*.ipynb'):
        assert not any(c.get('outputs') for c in json.loads(path.read_text())['cells']), path


def undescribed(notebook):
    "Numbers of the cells with a figure and without words for those who can't see it: `#| fig-alt: ...`, or a caption, **Figure 1.** ..., right before."
    found, before = [], ''
    for i, cell in enumerate(notebook['cells']):
        source = ''.join(cell['source'])
        data = [{k: ''.join(v) for k, v in o.get('data', {}).items() if k.startswith(('image/', 'text/html'))} for o in cell.get('outputs', ())]
        html = source if cell['cell_type']=='markdown' else ' '.join(d.get('text/html', '') for d in data)
        pictures = re.findall(r'<(?:img|canvas)\b[^>]*>', html)
        said = [re.search(r'\b(?:alt|aria-label)="([^"]*)"', p) for p in pictures]
        said = [m[1] if m else '' for m in said] + (re.findall(r'!\[([^\]]*)\]\(', source) if cell['cell_type']=='markdown' else [])
        drawn = cell['cell_type']=='code' and not source.startswith('#| hide') and (any(k.startswith('image/') for d in data for k in d) or re.search(r'^(?:fig\b|plt\.(?!close))', source, re.M))
        if drawn: said += [m[1] if (m := re.search(r'^#\| fig-alt: (.*)', source, re.M) or re.search(r'\*\*Figure \d+\.\*\* (.*)', before)) else '']
        if any(len(text.strip())<20 for text in said): found += [i]
        before = source
    return found


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT/'nbs').with_suffix('')))
def test_figures_have_words_for_those_who_cannot_see_them(notebook):
    assert undescribed(json.loads(notebook.read_text(encoding='utf-8')))==[]


def test_figures_without_words_are_found():
    def code(source, **data): return dict(cell_type='code', source=source, outputs=[dict(data=data)] if data else [])
    def text(source): return dict(cell_type='markdown', source=source)
    words = 'Loss against epoch, falling for all'
    good = [code(f'#| fig-alt: {words}\nplt.figure()'), text(f'**Figure 1.** {words}'), code('fig = 1', **{'image/png': ''}), text(f'![{words}](a.svg)'), code('show()', **{'text/html': f'<canvas aria-label="{words}">'}), code('def draw():\n    plt.figure()')]
    bad = [code('plt.figure()'), code('against(ds)', **{'image/svg+xml': ''}), code('#| fig-alt: Figure\nplt.figure()'), text('![](a.svg)'), text('<img src="a.svg">'), code('show()', **{'text/html': '<img src="data:">'})]
    assert undescribed(dict(cells=good))==[] and undescribed(dict(cells=bad))==[*range(len(bad))]


def test_chapters_are_numbered_without_gaps(): assert [int(p.stem[:2]) for p in CHAPTERS]==list(range(len(CHAPTERS)))


@pytest.mark.parametrize('chapter', (*GROUND, *CHAPTERS), ids=lambda p: p.stem)
def test_chapter_imports_only_earlier_chapters(chapter):
    earlier = {module(p) for p in (*GROUND, *CHAPTERS)[:(*GROUND, *CHAPTERS).index(chapter)]}
    source = (ROOT/'contrastive_nb'/f'{module(chapter)}.py').read_text()
    used = {node.module.split('.')[-1] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module
            and (node.level or node.module.startswith('contrastive_nb.'))}
    assert used <= earlier, f'{chapter.stem} leans on {sorted(used - earlier)}'


def test_every_module_has_a_chapter():
    assert {p.stem for p in (ROOT/'contrastive_nb').glob('[!_]*.py')}=={module(p) for p in (*GROUND, *CHAPTERS)}


def test_readme_equals_index():
    done = subprocess.run([sys.executable, '.ci/readme.py', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode==0, done.stderr


def test_the_extra_all_holds_what_the_commands_use():
    pytest.importorskip('hatchling')
    extras = runpy.run_path(str(ROOT/'.ci/metadata.py'))['metadata'](ROOT/'settings.ini')['optional-dependencies']
    assert {'torchvision', 'scipy', 'papermill', 'xarray', 'dask', 'distributed', 'zarr'} <= {re.match('[a-z0-9-]+', r)[0] for r in extras['all']}


def test_top_level():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    assert {line.split('/')[0] for line in listed.stdout.splitlines()} <= TOP


def test_the_source_archive_holds_all_that_git_holds(tmp_path):
    pytest.importorskip('hatchling')
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    subprocess.run([sys.executable, '-m', 'hatchling', 'build', '-t', 'sdist', '-d', str(tmp_path)], cwd=ROOT, check=True)
    with tarfile.open(next(tmp_path.iterdir())) as archive: held = {name.split('/', 1)[1] for name in archive.getnames()}
    assert set(listed.stdout.splitlines()) <= held


@pytest.mark.parametrize('path', sorted((ROOT/'data/results').rglob('*.nc')), ids=lambda p: p.stem)
def test_published_results_say_where_they_come_from(path):
    with xr.open_dataset(path) as ds: attrs, scored = ds.attrs, {str(v) for v in ds.evaluate_on.values.reshape(-1)} if 'evaluate_on' in ds.coords else {'test'}
    assert re.fullmatch('[0-9a-f]{40}', attrs['commit']) and attrs['dirty']=='false' and 'torch' in json.loads(attrs['versions']) and attrs['device'] and json.loads(attrs['protocol'])
    assert attrs['n_runs']>1 and attrs['n_absent']==0
    assert scored==({'validation'} if path.parent.name=='validation' else {'test'})


def test_losses_need_torch_alone():
    code = "import sys; import torch; before = set(sys.modules); import contrastive_nb.losses, contrastive_nb.label_losses; print(*{m.split('.')[0] for m in set(sys.modules)-before})"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert not {'scipy', 'sklearn', 'xarray', 'torchvision', 'pydantic', 'papermill'} & set(done.stdout.split())
