"The commands end to end: run, sweep, go on, collect, report; and one clear line with exit code 2 where the request makes no sense."
import base64
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from PIL import Image

from contrastive_nb.cli import main
from contrastive_nb.experiment import Config
from contrastive_nb.grids import resolve
from contrastive_nb.notebook import declared, read_notebook
from contrastive_nb.record import save_dataset

ROOT = Path(__file__).parents[1]
PRETRAIN = ROOT/'nbs'/'experiments'/'pretrain.ipynb'
TOY = ('-p', 'n_epochs', '1', '-p', 'n_measured', '16', '-p', 'batch_size', '256')


def call(*words):
    done = CliRunner().invoke(main, [str(w) for w in words])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    return done.exit_code, done.output


def refused(out, *words):
    "The one line that the command says; nothing may stand in `out`."
    code, text = call(*words, '-o', out)
    assert code==2, text
    assert text.startswith('contrastive-nb: ') and text.count('\n')==1, text
    assert not Path(out).exists()
    return text


def test_the_notebook_declares_the_config():
    parameters = declared(read_notebook(PRETRAIN))
    assert list(resolve(parameters, {}))==list(Config.model_fields)
    assert resolve(parameters, {})==Config().model_dump()
    assert all(p.help for p in parameters.values())


@pytest.mark.parametrize('words, text', [
    (('bacth_size', 64), "unknown parameter 'bacth_size', did you mean 'batch_size'?"), (('batch_size', 'many'), "parameter batch_size must be int, got 'many'"),
    (('n_epochs', '1.5'), 'parameter n_epochs must be int'), (('lambda', 1), "unknown parameter 'lambda'"), (('out', 'x'), "unknown parameter 'out'"),
    (('loss_params', 'hot'), 'parameter loss_params must be dict'),
])
def test_bad_parameters(tmp_path, words, text): assert text in refused(tmp_path/'out', 'run', PRETRAIN, '-p', *words)


BAD_VALUES = [
    (dict(loss='simclr'), "unknown loss 'simclr', known: infonce, ntxent, dcl, dhel, kcl"), (dict(dataset='mnist'), 'must be one of digits, cifar10'),
    (dict(encoder='vit'), "unknown encoder 'vit', known: small, resnet18, resnet34, resnet50"), (dict(batch_size=1), 'batch_size must be a whole number >= 2, got 1'),
    (dict(batch_size=2000), 'a batch of 2000 is larger than the dataset digits with its 1437 training images'),
    (dict(loss_params=dict(temperature=0)), 'temperature must be a number > 0, got 0'), (dict(loss_params=dict(temperature=math.nan)), 'temperature must be a number > 0, got nan'),
    (dict(loss_params=dict(temperature='hot')), "temperature must be a number > 0, got 'hot'"), (dict(loss_params=dict(tau=.1)), "unknown parameter 'tau'"),
    (dict(dataset='folder:no/such/folder'), 'no/such/folder'), (dict(views='moco'), "unknown views 'moco'"), (dict(projector=[]), 'projector must be the sizes of one to three layers, each 2 or more, got []'), (dict(projector=[64, 1]), 'got [64, 1]'),
    (dict(n_parts=3), 'batch_size must divide into n_parts=3, got 64'), (dict(seed=2**64), 'seed must be less than'), (dict(n_train=4, batch_size=2), 'hold none of the test classes'), (dict(device='tpu'), "device must be 'auto', 'cpu' or 'cuda'"),
]


def test_bad_values_are_found_before_any_run(tmp_path):
    (tmp_path/'grid.yaml').write_text(json.dumps(dict(cases=[{}, *(values for values, _ in BAD_VALUES)])).replace('NaN', '.nan'))
    said = refused(tmp_path/'out', 'sweep', PRETRAIN, '-g', tmp_path/'grid.yaml')   # the good point doesn't run either
    assert all(text in said for _, text in BAD_VALUES), said
    assert "unknown loss 'simclr'" in refused(tmp_path/'out', 'run', PRETRAIN, '-p', 'loss', 'simclr')
    assert 'temperature must be a number > 0, got nan' in refused(tmp_path/'out', 'run', PRETRAIN, '-p', 'loss_params.temperature', '.nan')


def test_an_unreadable_image_is_named(tmp_path):
    for kind in 'ab':
        (tmp_path/'images'/kind).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.full((8, 8), 40*i, np.uint8)).save(tmp_path/'images'/kind/f'{i}.png')
    (tmp_path/'images'/'a'/'3.png').write_bytes(b'not an image')
    assert '3.png' in refused(tmp_path/'out', 'run', PRETRAIN, '-p', 'dataset', f"folder:{tmp_path/'images'}")


@pytest.mark.parametrize('text, says', [('', 'the grid has no points'), ('product: {}', 'no points'), ('product: {seed: []}', 'no points'), ('prodct: {seed: [0]}', "unknown key 'prodct'"),
                                        ('product: {seed: [0, 0]}', 'more than once'), ('a: [', 'no readable YAML'), ('product: {sed: [0]}', "did you mean 'seed'")])
def test_bad_grids(tmp_path, text, says):
    (tmp_path/'grid.yaml').write_text(text)
    assert says in refused(tmp_path/'out', 'sweep', PRETRAIN, '-g', tmp_path/'grid.yaml')


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path/'file').write_text('')
    code, text = call('run', PRETRAIN, *TOY, '-o', tmp_path/'file'/'out')
    assert code==2 and 'can\'t be made' in text and text.count('\n')==1
    if Path('/proc').is_dir():
        code, text = call('run', PRETRAIN, *TOY, '-o', '/proc/out')
        assert code==2 and text.count('\n')==1


def test_bad_notebooks(tmp_path):
    assert 'does not exist' in refused(tmp_path/'out', 'run', tmp_path/'no.ipynb')
    (tmp_path/'cut.ipynb').write_text('{"cells": [')
    assert 'no readable notebook' in refused(tmp_path/'out', 'run', tmp_path/'cut.ipynb')
    assert "one cell tagged 'parameters'" in refused(tmp_path/'out', 'run', ROOT/'nbs'/'00_sphere.ipynb')


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    "A sweep of four tiny runs, by the installed command."
    folder = tmp_path_factory.mktemp('sweep')
    (folder/'grid.yaml').write_text('cases:\n- {loss: dhel, loss_params: {temperature: 0.3}}\n- {loss: kcl, loss_params: {kernel: imq, c: 0.5}}\n'
                                    'product: {seed: [0, 1]}\nfixed: {n_epochs: 1, n_measured: 16, batch_size: 256, lr: 1e-1}\n')
    command = [str(Path(sys.executable).parent/'contrastive-nb'), 'sweep', str(PRETRAIN), '-g', str(folder/'grid.yaml'), '-o', str(folder/'out')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode==0, done.stderr
    assert '4 of 4 runs done' in done.stdout
    return folder, command


def test_a_sweep_becomes_one_dataset(swept):
    folder, _ = swept
    code, text = call('collect', folder/'out')
    assert code==0 and '4 runs' in text
    ds = xr.load_dataset(folder/'out'/'results.nc')
    assert ds.probe_accuracy.dims==('objective', 'dataset', 'encoder', 'batch_size', 'seed')
    assert ds.sizes['objective']==2 and ds.sizes['seed']==2 and int(ds.probe_accuracy.notnull().sum())==4
    assert set(ds.objective.values)=={'dhel(temperature=0.3)', 'kcl(kernel=imq(c=0.5), gamma=16.0)'}
    assert json.loads(ds.attrs['protocol'])['probe_accuracy']['probe']=='linear'
    assert ds.lr.item()==.1 and ds.attrs['commit'] is not None and json.loads(ds.attrs['versions'])['torch']
    code, text = call('report', folder/'out'/'results.nc')
    assert code==0 and 'probe_accuracy' in text
    page = (folder/'out'/'results.html').read_text()
    assert page.count('<img') >= 6 and 'http' not in page.replace('http://www.w3.org', '')


def test_done_runs_are_skipped_and_damaged_ones_run_again(swept):
    folder, command = swept
    states = lambda: {p.parent.name: json.loads(p.read_text()) for p in (folder/'out').glob('*/run.json')}
    before = states()
    damaged = sorted(before)[0]
    result = (folder/'out'/damaged/'result.nc').read_bytes()
    (folder/'out'/damaged/'result.nc').write_bytes(result[:1000])
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode==0 and '4 of 4 runs done' in done.stdout, done.stderr
    after = states()
    assert after.pop(damaged)['attempts']==2 and all(after[name]==before[name] for name in after)
    again, first = xr.load_dataset(folder/'out'/damaged/'result.nc'), xr.load_dataset(write(folder/'first.nc', result))
    for name in first.data_vars.keys() - {'seconds', 'views_per_second', 'peak_memory'}: assert first[name].equals(again[name]), name   # same seed, same bits
    code, text = call('status', folder/'out')
    assert code==0 and '4 done' in text


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_failing_run_is_told_and_does_not_stop_the_others(tmp_path):
    nb = json.loads(PRETRAIN.read_text())
    last = [c for c in nb['cells'] if c['cell_type']=='code'][-1]
    last['source'] = 'if seed==1: raise RuntimeError("out of luck")'
    save = next(c for c in nb['cells'] if 'save_run(' in ''.join(c['source']) and c['cell_type']=='code' and 'import' not in ''.join(c['source']))
    nb['cells'].remove(save); nb['cells'].append(save)   # the result is written after the failing cell
    (tmp_path/'unlucky.ipynb').write_text(json.dumps(nb))
    (tmp_path/'grid.yaml').write_text('product: {seed: [0, 1]}\nfixed: {n_epochs: 1, n_measured: 16, batch_size: 256}\n')
    code, text = call('sweep', tmp_path/'unlucky.ipynb', '-g', tmp_path/'grid.yaml', '-o', tmp_path/'out')
    assert code==1 and '1 of 2 runs done' in text and 'RuntimeError: out of luck' in text
    code, text = call('collect', tmp_path/'out')
    assert code==0 and '1 absent' in text


@pytest.mark.parametrize('package', ['zarr', 'distributed'])
def test_a_missing_package_is_named_with_what_brings_it(swept, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    folder, _ = swept
    (tmp_path/'all.zarr').mkdir()
    commands = dict(zarr=[(tmp_path/'page.html', 'report', tmp_path/'all.zarr'), (tmp_path/'new.zarr', 'collect', folder/'out')],
                    distributed=[(tmp_path/'out', 'sweep', PRETRAIN, '-g', folder/'grid.yaml', '--scheduler', 'tcp://127.0.0.1:9')])
    for command in commands[package]:
        said = refused(*command)
        assert package in said and said.endswith("; remedy: pip install 'contrastive-nb[all]'\n")


def test_the_module_is_a_program():
    "As `torchrun -m contrastive_nb.cli` and `python -m contrastive_nb.cli` start it."
    def run(*words): return subprocess.run([sys.executable, '-m', 'contrastive_nb.cli', *words], capture_output=True, text=True, cwd=ROOT)
    assert (done := run('--help')).returncode==0 and 'python -m contrastive_nb.cli' in done.stdout and all(name in done.stdout for name in main.commands), done
    assert (done := run('collect', 'nowhere')).returncode==2 and done.stderr=='contrastive-nb: there is no sweep in nowhere\n'


EVIL = '''<script>alert(1)</script> "><img src=x onerror=alert(1)> ' onload='alert(1) R&D &lt; &amp; {{ 7*7 }}{% raw %} --><!-- ]]> </title></style></html> $\\no{ $'''


class Page(HTMLParser):
    "The elements of a page with their attributes, its text, and its pictures."
    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.pictures = [], '', []
        self.feed(html)
        self.close()
    def handle_data(self, data): self.text += data
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags += [(tag, *sorted(attrs))]
        if tag=='img': self.pictures += [base64.b64decode(attrs['src'].removeprefix('data:image/svg+xml;base64,')).decode()]
    def handle_comment(self, data): self.tags += [('comment', data)]


def test_a_report_shows_text_from_parameters_as_text(tmp_path):
    ds = xr.load_dataset(ROOT/'data'/'results'/'digits_demo.nc').isel(batch_size=[0])
    def page(word):
        "The report of a dataset in which `word` is everywhere where a user's text may stand, written by the command."
        names = [f'{word} {name}' for name in ds.objective.values]
        named = ds.assign_coords(objective=names, dataset=[word], note=word).assign_attrs(
            question=word, experiment=word, commit=word, absent=json.dumps({word: word}), protocol=json.dumps({word: {word: word}}))
        named['probe_accuracy'].attrs |= dict(long_name=word, units=word)
        file = tmp_path/'results.nc'
        save_dataset(named, file)
        code, said = call('report', file)
        assert code==0, said
        return Page(file.with_suffix('.html').read_text(encoding='utf-8'))
    plain, shown = page('word'), page(EVIL)
    assert shown.tags==plain.tags                                  # nothing was added, closed or left open
    assert shown.text.count(EVIL)==plain.text.count('word')>=20    # and all of it can be read
    assert [t.tag for svg in shown.pictures for t in ElementTree.fromstring(svg).iter() if 'script' in t.tag.lower() or 'image' in t.tag.lower()]==[]
    assert len(shown.pictures)>=6


def test_info_lists_what_parameters_may_name():
    code, text = call('info')
    assert code==0 and all(name in text for name in ('dhel', 'gaussian', 'digits', 'resnet18', 'folder:PATH'))
