"The site: every chapter a page, every function in the reference, readable without a network, built without a warning."
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[1]
MISSING = [name for name in ('sphinx', 'myst_nb', 'sphinx_book_theme') if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}: pip install -c constraints.txt -e '.[docs]'")


def build(root, out, **env):
    run = subprocess.run([sys.executable, str(root/'nbs/_site/build.py'), '-o', str(out)], cwd=out.parent, capture_output=True, text=True, env=os.environ | env)
    return run.returncode, run.stdout + run.stderr


def plain(html): return re.sub(r'<[^>]+>', '', html)
def names(pages): return {str(p.relative_to(pages)) for p in pages.rglob('*.html')}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site of this project, built once, also where several processes share the tests."
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: folder = folder.parent
    out = folder/'site/html'
    out.parent.mkdir(exist_ok=True)
    with FileLock(folder/'site.lock'):
        if not (folder/'site/said').exists():
            before = set(ROOT.glob('nbs/_site/**/*'))
            status, said = build(ROOT, out, DOCS_RUNS=str(folder/'site/no-runs'))     # test_browser.py has them executed
            added = set(ROOT.glob('nbs/_site/**/*')) - before
            (folder/'site/said').write_text(said if status or not added else f'the build wrote among its sources: {added}')
            if not status and not added: (folder/'site/good').touch()
    assert (folder/'site/good').exists(), (folder/'site/said').read_text()
    return out


def test_a_page_for_every_notebook(site):
    chapters = {re.sub(r'^\d\d_', '', p.stem) for p in ROOT.glob('nbs/*.ipynb')} - {'index'}
    extra = {f"{p.parent.name}/{re.sub(r'^[0-9]{2}_', '', p.stem)}" for folder in ('experiments', 'findings', 'tutorials') for p in (ROOT/'nbs'/folder).glob('*.ipynb')}
    pages = {'index', 'api', 'search', 'genindex'} | chapters | extra | {f'api/{c}' for c in chapters}
    pages |= {page for page, file in (('changelog', 'CHANGELOG.md'), ('cite', 'CITATION.cff')) if (ROOT/file).exists()}
    assert {f'{page}.html' for page in pages} <= names(site)
    menu = (site/'index.html').read_text(encoding='utf-8')
    order = [menu.index(f'href="{page}.html"') for page in ('compat', 'record', 'sphere', 'kernels', 'losses', 'metrics', 'analysis', 'api')]
    assert order==sorted(order)


def test_reference_of_a_function(site):
    page = (site/'api/losses.html').read_text(encoding='utf-8')
    dhel = page[page.index('id="contrastive_nb.losses.dhel"'):page.index('id="contrastive_nb.losses.kcl"')]
    for heading in ('name', 'type', 'default', 'meaning'): assert f'<p>{heading}</p>' in dhel
    rows = [plain(row).split('\n') for row in re.findall(r'<tr.*?</tr>', dhel, re.S)]
    assert [row[0] for row in rows[1:]]==['z1', 'z2', 'temperature', 'views', 'normalize', 'validate', 'returns']
    assert rows[4][:3]==['views', 'str', "'both'"] and rows[4][3].startswith('whose energy')
    assert '_modules/contrastive_nb/losses.html#dhel' in dhel                            # its source
    link = re.search(r'href="\.\./losses\.html#([\w-]+)"', dhel)[1]                     # its place in the chapter
    chapter = (site/'losses.html').read_text(encoding='utf-8')
    code = plain(chapter[chapter.index(f'id="{link}"'):][:9000])
    assert 'def dhel(' in code and 'Mean log-sum-exp' in code


def test_directives_and_hidden_cells_do_not_show(site):
    for notebook in ROOT.glob('nbs/*.ipynb'):
        page = re.sub(r'^\d\d_', '', notebook.stem)
        text = plain((site/f'{page}.html').read_text(encoding='utf-8'))
        assert '#| ' not in text.replace('`#| ', ''), page
        for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type']=='code' and source.startswith('#| hide'): assert source.splitlines()[-1] not in text.splitlines(), page


def test_search_knows_dhel(site):
    index = (site/'searchindex.js').read_text(encoding='utf-8')
    assert '"dhel"' in index and 'contrastive_nb.losses' in index


def test_nothing_is_fetched(site):
    fetched = re.compile(r'<(?:script|img|iframe|source|video|audio|object)\b[^>]*?\b(?:src|data|srcset)="\s*(?:https?:)?//[^"]*"', re.S)
    sheets = re.compile(r'<link\b(?=[^>]*rel="(?:stylesheet|preload|icon|modulepreload|preconnect)")[^>]*href="(?:https?:)?//[^"]*"', re.S)
    for page in site.rglob('*.html'):
        html = page.read_text(encoding='utf-8')
        assert fetched.findall(html) + sheets.findall(html)==[], page.name
    for sheet in site.rglob('*.css'):
        assert not re.findall(r'(?:url\(|@import\s+)["\']?(?:https?:)?//', sheet.read_text(encoding='utf-8')), sheet.name


def test_links_inside_the_site_lead_somewhere(site):
    html = {page: page.read_text(encoding='utf-8') for page in site.rglob('*.html') if '_static' not in page.parts}
    ids = {page.resolve(): set(re.findall(r'\bid="([^"]+)"', text)) for page, text in html.items()}
    for page, text in html.items():
        for target in re.findall(r'<(?:a|link|script|img)\b[^>]*?(?:href|src)="([^"]+)"', text):
            if re.match(r'[a-z]+:|//', target): continue
            path, _, anchor = target.partition('#')
            file = (page.parent/path.partition('?')[0]).resolve() if path else page.resolve()
            assert file.exists(), f'{page.name}: {target}'
            if anchor and file in ids: assert anchor in ids[file], f'{page.name}: {target}'


def test_each_notebook_says_how_to_have_it(site):
    for notebook in [p for p in ROOT.glob('nbs/**/*.ipynb') if p.stem!='index' and '.ipynb_checkpoints' not in p.parts]:
        page = site/notebook.relative_to(ROOT/'nbs').with_name(re.sub(r'^[0-9]{2}_', '', notebook.stem) + '.html')
        html = page.read_text(encoding='utf-8')
        box = re.search(r'<div class="use[^"]*">(.*?)</div>', html, re.S)[1]
        path = str(notebook.relative_to(ROOT))
        assert 'make lab' in plain(box) and path in plain(box) and path.removeprefix('nbs/') in plain(box)
        copy = (page.parent/re.search(r'href="([^"]+\.ipynb)"', box)[1]).resolve()
        assert copy.read_bytes()==notebook.read_bytes()


def test_formulas_are_drawn_by_the_files_beside_the_page(site):
    page = (site/'losses.html').read_text(encoding='utf-8')
    assert 'class="math notranslate' in page or 'class="math"' in page
    for file in ('katex/katex.min.css', 'katex/katex.min.js', 'formulas.js'):
        assert re.search(rf'"_static/{file}(\?[^"]*)?"', page) and (site/'_static'/file).stat().st_size
    css = (site/'_static/katex/katex.min.css').read_text(encoding='utf-8')
    for font in re.findall(r'url\(([^)]+)\)', css): assert (site/'_static/katex'/font).exists(), font
    assert 'katex' not in (site/'genindex.html').read_text(encoding='utf-8')       # a page without formulas loads nothing


@pytest.mark.skipif(not shutil.which('node'), reason='KaTeX can only be asked where Node.js is installed')
def test_katex_understands_every_formula(site, tmp_path):
    import html
    found = {html.unescape(m) for page in site.rglob('*.html') for m in re.findall(r'<(?:span|div) class="math[^"]*"[^>]*>(.*?)</(?:span|div)>', page.read_text(encoding='utf-8'), re.S)}
    assert len(found)>50
    (tmp_path/'formulas.json').write_text(json.dumps(sorted(found)))
    check = "const k = require(process.argv[1]); for (const f of require(process.argv[2])) k.renderToString(f, {displayMode: true, strict: 'ignore'})"
    run = subprocess.run(['node', '-e', check, str(site/'_static/katex/katex.min.js'), str(tmp_path/'formulas.json')], capture_output=True, text=True)
    assert run.returncode==0, run.stderr


# a small project of its own, for what the real one may not have

CHAPTER = ['''# Toy
> A promise with `code`.

See [the front](index.ipynb), [a file](../LICENSE) and `double`.''', '#| default_exp toy', '#| hide\nsecret = 1', '''#| export
from dataclasses import dataclass''', '''#| export
def double(
    x:int,              # what to double, a|b, 0 < x
    *names:str,         # any *stars*
    by:'float|None'=2.0,# the factor
)->int:                 # () twice `x`
    "Twice `x`, as $2x$ [not a link]."
    return 2*x

@dataclass
class Box:
    "A box around `double`."
    # how wide it is,
    width:int=1         # in m

    @property
    def area(self)->int: "Width squared."; return self.width**2

    def grow(self,
        by:int,         # m
    ): self.width += by

def _private(): "Not public."
FACTOR = 2              # how often''', '#| slow\nassert double(2)==4']


def notebook(cells):
    return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type='code', id=f'c{i}', metadata={}, outputs=[], execution_count=None, source=c) if i and not c.startswith('# ')
        else dict(cell_type='markdown', id=f'c{i}', metadata={}, source=c) for i, c in enumerate(cells)]))


@pytest.fixture
def toy(tmp_path):
    root = tmp_path/'toy'
    (root/'nbs/experiments').mkdir(parents=True)
    (root/'contrastive_nb').mkdir()
    shutil.copytree(ROOT/'nbs/_site', root/'nbs/_site', ignore=shutil.ignore_patterns('__pycache__'))
    for file in ('settings.ini', 'LICENSE'): shutil.copy(ROOT/file, root)
    (root/'nbs/00_toy.ipynb').write_text(notebook(CHAPTER))
    (root/'nbs/experiments/ask.ipynb').write_text(notebook(['# A question', 'answer = 42']))
    return root


def test_toy_project(toy, tmp_path):
    (toy/'nbs/index.ipynb').write_text(notebook(['# Front\n\nRead [toy](nbs/00_toy.ipynb).']))
    (toy/'CHANGELOG.md').write_text('# Changelog\n\n## 1.0\n')
    (toy/'CITATION.cff').write_text('cff-version: 1.2.0\nmessage: Please cite.\ntitle: A toy\nauthors: [{family-names: Ho, given-names: Ann}]\nversion: 1.0\n')
    runs = tmp_path/'runs/experiments'
    runs.mkdir(parents=True)
    run = json.loads(notebook(['# A question', 'answer = 43\nout = "/home/me"']))
    run['cells'][1] |= dict(metadata=dict(tags=['injected-parameters']),
                            outputs=[dict(output_type='stream', name='stderr', text=text) for text in ('\r 0%', '\r50%', '\r99%\n', 'done\n')])
    (runs/'ask.ipynb').write_text(json.dumps(run))
    out = tmp_path/'html'
    status, said = build(toy, out, DOCS_RUNS=str(tmp_path/'runs'))
    assert status==0, said
    api, chapter, front = ((out/page).read_text(encoding='utf-8') for page in ('api/toy.html', 'toy.html', 'index.html'))
    text = re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', api))
    for said in ('what to double, a|b, 0 &lt; x', '*names str any *stars*', 'by float|None 2.0 the factor', 'returns int () twice x', '[not a link]',
                 'width int 1 how wide it is, in m', 'Width squared.', 'by int m', 'FACTOR', 'how often'): assert said in text, said
    assert '_private' not in text and 'secret' not in chapter and '#|' not in chapter
    assert 'href="api/toy.html#contrastive_nb.toy.double"' in chapter and 'href="index.html"' in chapter and '/blob/main/LICENSE"' in chapter
    assert 'href="toy.html"' in front
    ask = plain((out/'experiments/ask.html').read_text(encoding='utf-8'))              # the executed copy is shown
    assert 'answer = 42' in (out/'_sources/experiments/ask.ipynb').read_text()         # and the clean one is the download
    assert 'answer = 43' in ask and '99%\ndone' in ask and '50%' not in ask and '/home/me' not in ask
    cite = plain((out/'cite.html').read_text(encoding='utf-8'))
    assert '@software{a_toy,' in cite and 'author = {Ho, Ann}' in cite
    assert not (out/'_sources/toctree.txt').exists()


def test_links_to_tests_lead_to_the_line(toy, tmp_path):
    (toy/'tests').mkdir()
    (toy/'tests/test_toy.py').write_text('import re\n\n\ndef test_double(): pass\n')
    (toy/'nbs/findings').mkdir()
    (toy/'nbs/findings/01_all.ipynb').write_text(notebook(['# All\n> Of it.\n\n[checked](../../tests/test_toy.py#test_double), [toy](../00_toy.ipynb), [next](02_next.ipynb)']))
    (toy/'nbs/findings/02_next.ipynb').write_text(notebook(['# Next']))
    status, said = build(toy, tmp_path/'html')
    assert status==0, said
    html = (tmp_path/'html/findings/all.html').read_text(encoding='utf-8')
    assert '/blob/main/tests/test_toy.py#L4"' in html and 'href="../toy.html"' in html and 'href="next.html"' in html and 'jupyter execute nbs/findings/01_all.ipynb' in plain(html)
    (toy/'tests/test_toy.py').write_text('import re\n')
    status, said = build(toy, tmp_path/'html')
    assert status!=0 and 'test_double' in said


# executed experiments

@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'nbs/_site'))
    return importlib.import_module('runs')


def test_modules_that_a_notebook_uses(runs):
    names = {p.stem for p in runs.used('%matplotlib inline\nfrom contrastive_nb.losses import dhel', ROOT/'contrastive_nb')}
    assert {'losses', 'pairs', 'sphere', 'kernels'} <= names and not {'cli', 'train', 'metrics'} & names


def test_an_experiment_runs_again_only_when_it_or_what_it_uses_changes(runs, toy, tmp_path, monkeypatch):
    file, ran = toy/'nbs/experiments/ask.ipynb', []
    def execute(notebook, folder, root):
        ran.append(notebook.stem); time.sleep(.1); (folder/'run').mkdir(parents=True); (folder/'run/notebook.ipynb').write_text('{}')
        return 1.
    monkeypatch.setattr(runs, 'execute', execute)
    def again(): runs.executed(toy, 'contrastive_nb', tmp_path/'cache'); return len(ran)
    assert again()==0                                                     # it has no parameters, so nobody can run it
    cells = json.loads(notebook(['# A question', 'from contrastive_nb.toy import double', 'answer = 42']))
    cells['cells'][2]['metadata'] = dict(tags=['parameters'])
    file.write_text(json.dumps(cells))
    (toy/'contrastive_nb/toy.py').write_text('def double(x): return 2*x')
    assert again()==1 and again()==1
    (toy/'contrastive_nb/other.py').write_text('unused = True')
    assert again()==1
    (toy/'contrastive_nb/toy.py').write_text('def double(x): return x+x')
    assert again()==2
    file.write_text(json.dumps(cells).replace('42', '43'))
    assert again()==3 and len(list((tmp_path/'cache').glob('ask-*')))==1  # older ones are removed
    shutil.rmtree(tmp_path/'cache')
    with ThreadPoolExecutor(2) as pool: assert sorted(pool.map(lambda _: again(), range(2)))==[4, 4]     # of two builds at once one waits


def test_the_workflow_keeps_executed_experiments_until_something_that_they_use_changes(runs):
    steps = yaml.safe_load((ROOT/'.github/workflows/docs.yaml').read_text())['jobs']['build']['steps']
    place, cache = next((i, s['with']) for i, s in enumerate(steps) if s.get('uses', '').startswith('actions/cache@'))
    assert place<[s.get('run') for s in steps].index('make docs') and f"ROOT/'{cache['path']}'" in (ROOT/'nbs/_site/build.py').read_text()
    prefix, patterns = re.fullmatch(r'([\w-]+)\$\{\{ hashFiles\((.*)\) \}\}', cache['key']).groups()
    assert cache['restore-keys']==prefix
    hashed = {f for pattern in re.findall(r"'([^']+)'", patterns) for f in ROOT.glob(pattern)}
    read = {f for notebook in ROOT.glob('nbs/experiments/*.ipynb') for f in runs.ingredients(notebook, ROOT, 'contrastive_nb')}
    assert len(read)>20 and read <= hashed


def test_an_experiment_that_fails_fails_the_build(toy, tmp_path):
    cells = json.loads(notebook(['# A question', 'answer = 42\nout = ""', 'raise ValueError("no answer to that")']))
    cells['cells'][1]['metadata'] = dict(tags=['parameters'])
    (toy/'nbs/experiments/ask.ipynb').write_text(json.dumps(cells))
    status, said = build(toy, tmp_path/'html')
    assert status!=0 and 'ask.ipynb does not run with its defaults' in said and 'no answer to that' in said and not (tmp_path/'html').exists()


def test_a_dead_link_is_an_error_and_a_missing_front_page_is_not(toy, tmp_path):
    (toy/'nbs/01_bad.ipynb').write_text(notebook(['# Bad\n\n[gone](99_gone.ipynb)']))
    status, said = build(toy, tmp_path/'html')
    assert status!=0 and [line for line in said.splitlines() if 'WARNING' in line and '99_gone.ipynb' not in line]==[] and '99_gone.ipynb' in said
    assert 'href="toy.html"' in (tmp_path/'html/index.html').read_text(encoding='utf-8')
    assert not {'changelog.html', 'cite.html'} & names(tmp_path/'html')


def test_a_figure_without_alternative_text_is_an_error(toy, tmp_path):
    picture = dict(output_type='display_data', metadata={}, data={'image/svg+xml': '<svg xmlns="http://www.w3.org/2000/svg"></svg>'})
    table = dict(output_type='display_data', metadata={}, data={'text/html': '<label title="Show"><svg class="icon"></svg></label>'})
    cells = json.loads(notebook(['# Drawn', '#| fig-alt: A line that rises\nplot()', 'table()']))
    for cell, output in zip(cells['cells'][1:], (picture, table)): cell['outputs'] = [output]
    file = toy/'nbs/01_drawn.ipynb'
    file.write_text(json.dumps(cells))
    status, said = build(toy, tmp_path/'html')
    page = (tmp_path/'html/drawn.html').read_text(encoding='utf-8')
    assert status==0 and re.search(r'<img[^>]*alt="A line that rises"', page) and '<svg aria-hidden="true" class="icon">' in page, said
    file.write_text(json.dumps(cells).replace('#| fig-alt: A line that rises\\n', ''))
    status, said = build(toy, tmp_path/'html')
    assert status!=0 and 'a figure without alternative text' in said and 'drawn' in said


def test_a_folder_that_is_no_site_is_left_alone(toy, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.tex').write_text('years of work')
    status, said = build(toy, tmp_path/'mine')
    assert status!=0 and 'is not a site' in said and (tmp_path/'mine/thesis.tex').exists()
