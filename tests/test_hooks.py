"Git keeps notebooks clean and whole: the hook before a commit, and merging."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which('git') or not shutil.which('make'), reason='git and make are needed')


def notebook(*sources, outputs=()):
    return json.dumps(dict(cells=[dict(cell_type='code', execution_count=len(outputs) or None, id=f'cell-{i}', metadata={}, outputs=list(outputs), source=s.splitlines(True)) for i, s in enumerate(sources)],
                           metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')), nbformat=4, nbformat_minor=5), indent=1, ensure_ascii=False) + '\n'


@pytest.fixture
def repository(tmp_path):
    "A small project with the hooks that `make hooks` installs; a function that runs git in it."
    for name in ('settings.ini', 'Makefile', '.gitattributes'): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/'.ci', tmp_path/'.ci', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path/'nbs').mkdir()
    (tmp_path/'nbs/a.ipynb').write_text(notebook('x = 1', 'y = 1'))
    env = os.environ | dict(GIT_CONFIG_GLOBAL=os.devnull, PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
                            **{f'GIT_{who}_{what}': 'ann@example.org' for who in ('AUTHOR', 'COMMITTER') for what in ('NAME', 'EMAIL')})
    def git(*command): return subprocess.run(['git', *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    git('init', '-q', '-b', 'main')
    made = subprocess.run(['make', 'hooks', f'BIN={Path(sys.executable).parent}'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert made.returncode==0, made.stderr
    git('add', '-A')
    assert (done := git('commit', '-qm', 'start')).returncode==0, done.stdout + done.stderr
    return tmp_path, git


def test_a_dirty_notebook_is_cleaned_before_it_is_committed(repository):
    folder, git = repository
    dirty = json.loads(notebook('x = 2', 'y = 1'))
    dirty['cells'][0] |= dict(execution_count=7, metadata=dict(collapsed=True))
    (folder/'nbs/a.ipynb').write_text(json.dumps(dirty))
    git('add', '-A')
    refused = git('commit', '-qm', 'dirty')
    assert refused.returncode!=0 and 'git add it' in refused.stdout + refused.stderr
    git('add', '-A')
    assert git('commit', '-qm', 'clean').returncode==0
    cell = json.loads(git('show', 'HEAD:nbs/a.ipynb').stdout)['cells'][0]
    assert cell['execution_count'] is None and cell['metadata']=={} and ''.join(cell['source'])=='x = 2'


def test_a_conflict_leaves_a_notebook_that_opens(repository):
    folder, git = repository
    for branch, source in (('mine', 'x = 2'), ('yours', 'x = 3')):
        git('checkout', '-q', '-b', branch, 'main')
        (folder/'nbs/a.ipynb').write_text(notebook(source, 'y = 1'))
        assert (done := git('commit', '-qam', branch)).returncode==0, done.stdout + done.stderr
    git('merge', 'mine')
    merged = json.loads((folder/'nbs/a.ipynb').read_text())
    text = '\n'.join(''.join(c['source']) for c in merged['cells'])
    assert 'x = 2' in text and 'x = 3' in text and 'y = 1' in text
