"The site, the lab and the report in a real browser."
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('chromium-browser'), shutil.which('chromedriver')
MISSING = [name for name, found in (('Chromium', CHROMIUM), ('chromedriver', DRIVER), ('selenium', importlib.util.find_spec('selenium')), ('sphinx', importlib.util.find_spec('sphinx')),
                                    ('jupyterlab', importlib.util.find_spec('jupyterlab'))) if not found]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found; on Debian: apt-get install chromium chromium-driver")]
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-component-update --disable-sync --no-first-run '
         '--disable-default-apps --disable-extensions --hide-scrollbars').split()
PHONE = dict(width=390, height=844, deviceScaleFactor=2, mobile=True)
PAGES = ('index.html', 'losses.html', 'api/losses.html', 'experiments/minimisers.html', 'findings/theory.html', 'findings/results.html',
         'findings/choosing.html', 'tutorials/watch_the_sphere.html', 'tutorials/explore_results.html', 'changelog.html', 'cite.html', 'search.html?q=dhel')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The address of the site with executed experiments, which are kept in _docs/runs for the next time."
    out = tmp_path_factory.mktemp('site')/'html'
    done = subprocess.run([sys.executable, str(ROOT/'nbs/_site/build.py'), '-o', str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode==0, done.stdout + done.stderr
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=out)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f'--user-data-dir={tmp_path/"profile"}', '--window-size=1400,900'): options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


def until(ask, seconds=60):
    "What `ask` answers as soon as that is true."
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic()<end, 'nothing came in time'
        time.sleep(.2)
    return answer


def phone(browser): browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', PHONE)
def scheme(browser, value): browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=value)]))
def errors(browser): return [e['message'] for e in browser.get_log('browser') if e['level']=='SEVERE']


def requests(browser):
    "Addresses that the pages asked for, since the last time."
    events = [json.loads(e['message'])['message'] for e in browser.get_log('performance')]
    return [e['params']['request']['url'] for e in events if e['method']=='Network.requestWillBeSent']


def sideways(browser): return browser.execute_script('return document.documentElement.scrollWidth - window.innerWidth')


@pytest.mark.parametrize('width', ['desktop', 'phone'])
def test_no_page_scrolls_sideways_complains_or_leaves_the_machine(site, browser, width):
    if width=='phone': phone(browser)
    for page in PAGES:
        browser.get(site + page)
        until(lambda: browser.execute_script('return document.readyState')=='complete')
        assert sideways(browser)<=0, page
        assert errors(browser)==[], page
        away = [url for url in requests(browser) if not url.startswith((site, 'data:', 'blob:', 'about:', 'chrome:', 'chrome-extension:'))]
        assert away==[], page
        missing = browser.execute_script("return [...document.images].filter(i => i.complete && !i.naturalWidth && i.loading!=='lazy').map(i => i.src)")
        nameless = browser.execute_script("return [...document.querySelectorAll('.cell_output img')].filter(i => !i.alt).map(i => i.src)")
        assert missing==[] and nameless==[], page


def test_front_page_leads_on(site, browser):
    browser.get(site)
    assert 'contrastive_nb' in browser.title
    assert browser.execute_script("return document.querySelectorAll('article pre').length")>=2
    figure = browser.execute_script("const f = document.querySelector('article img'); return f && [f.naturalWidth, f.alt]")
    assert figure and figure[0]>100 and len(figure[1])>20
    assert browser.execute_script("return document.querySelectorAll('article table').length")>=1


def test_search_finds_dhel(site, browser):
    browser.get(site + 'search.html?q=DHEL')
    found = until(lambda: browser.execute_script("return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"))
    assert any('losses.html' in link for link in found)


def test_reference_of_dhel(site, browser):
    browser.get(site + 'api/losses.html#contrastive_nb.losses.dhel')
    text = browser.execute_script("return document.getElementById('contrastive_nb.losses.dhel').parentElement.innerText")
    assert 'temperature' in text and '(B, D)' in text and 'returns' in text


def test_formulas_are_drawn(site, browser):
    for page in ('losses.html', 'findings/theory.html'):
        browser.get(site + page)
        drawn = until(lambda: browser.execute_script("return document.querySelectorAll('.math .katex-html').length"))
        assert drawn==browser.execute_script("return document.querySelectorAll('.math').length") and not browser.execute_script("return document.querySelectorAll('.katex-error').length")
        assert browser.execute_async_script("const done = arguments[0]; document.fonts.ready.then(() => done([...document.fonts].some(f => f.family.startsWith('KaTeX') && f.status=='loaded')))")


def test_dark_mode_follows_the_system_and_the_button(site, browser):
    def dark(): return browser.execute_script("const c = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); return c[0] + c[1] + c[2] < 150")
    for value in ('dark', 'light'):
        scheme(browser, value)
        browser.get(site + 'losses.html')
        assert dark()==(value=='dark')
    for value in ('dark', 'light'):                  # against the system's choice, and back
        for button in ('.theme-switch-button', f'.theme-change-button[data-mode={value}]'):
            until(lambda: browser.execute_script("const b = [...document.querySelectorAll(arguments[0])].find(b => b.offsetParent); if (b) b.click(); return !!b", button), 10)
        until(lambda: dark()==(value=='dark'), 10)


def test_keyboard_reaches_the_menu_and_the_text(site, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    browser.get(site)
    reached = []
    for _ in range(12):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("const e = document.activeElement; return [e.tagName, e.innerText.trim().slice(0, 40), getComputedStyle(e).outlineStyle + getComputedStyle(e).boxShadow]"))
    assert 'skip' in reached[0][1].lower() and sum(tag=='A' for tag, *_ in reached)>=3, reached


def test_the_sphere_moves_and_turns(site, browser):
    browser.get(site + 'tutorials/watch_the_sphere.html')
    def picture(): return browser.execute_script("return document.querySelector('canvas').toDataURL()")
    first = picture()
    browser.execute_script("const s = document.querySelector('figure input[type=range]'); s.value = s.max; s.dispatchEvent(new Event('input'))")
    last = picture()
    assert first!=last
    from selenium.webdriver.common.action_chains import ActionChains
    canvas = browser.find_element('css selector', 'canvas')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', canvas)
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, 20).perform()
    assert picture()!=last
    browser.execute_script("document.querySelector('figure button').click()")
    until(lambda: browser.execute_script("return +document.querySelector('figure input').value > 3"))


def test_report_opens_from_disk(browser, tmp_path):
    import xarray as xr
    from contrastive_nb.analysis import report
    ds = xr.load_dataset(ROOT/'data/results/digits_demo.nc')
    evil = '<script>document.title = "broken"</script><img src=x onerror="document.title=1">'
    names = [evil, *ds.objective.values.tolist()[1:]]
    report(ds.assign_coords(objective=names).assign_attrs(question=evil), tmp_path/'report.html', title=f'A & B {evil}')
    for width in ('desktop', 'phone'):
        if width=='phone': phone(browser)
        browser.get((tmp_path/'report.html').as_uri())
        assert browser.title==f'A & B {evil}' and evil in browser.find_element('tag name', 'body').text
        assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0 && i.alt)") and len(browser.find_elements('css selector', 'figure'))>=6
        assert sideways(browser)<=0 and errors(browser)==[]
        assert [url for url in requests(browser) if not url.startswith(('file:', 'data:', 'about:', 'chrome:'))]==[]


@pytest.mark.parametrize('name', [f.stem for f in sorted((ROOT/'data/results').glob('*.nc'))])
def test_tables_of_a_report_fit_a_desktop(browser, tmp_path, name):
    import xarray as xr
    from contrastive_nb.analysis import report
    report(xr.load_dataset(ROOT/f'data/results/{name}.nc'), tmp_path/'report.html')
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=1200, height=900, deviceScaleFactor=1, mobile=False))
    browser.get((tmp_path/'report.html').as_uri())
    assert browser.execute_script("return [innerWidth, document.querySelectorAll('.scroll table').length > 3]")==[1200, True]
    assert browser.execute_script("return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)")==[]


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a copy of the notebooks, with settings of its own: its address and its token."
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_site'))
    for name in ('settings.ini', 'data'): (tmp_path/name).symlink_to(ROOT/name)
    env = os.environ | {f'JUPYTER_{kind}_DIR': str(tmp_path/'jupyter'/kind) for kind in ('RUNTIME', 'CONFIG', 'DATA')} | dict(
        IPYTHONDIR=str(tmp_path/'ipython'), OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))))
    with open(tmp_path/'lab.log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--port=0', '--ip=127.0.0.1', '--allow-root', '--expose-app-in-browser',
                                    f'--notebook-dir={tmp_path/"nbs"}'], cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        file = until(lambda: next((tmp_path/'jupyter/RUNTIME').glob('jpserver-*.json'), None))
        until(lambda: file.read_text().endswith('}'))
        yield json.loads(file.read_text())
    finally:
        process.terminate()
        process.wait(30)


def run_all(browser, lab, notebook, seconds=280):
    "Open a notebook, choose Run All Cells, and bring back the outputs of each code cell."
    browser.get(f"{lab['url']}lab/tree/{notebook}?token={lab['token']}")
    until(lambda: browser.execute_script("const w = window.jupyterapp && jupyterapp.shell.currentWidget; return !!(w && w.sessionContext && w.sessionContext.session && w.sessionContext.session.kernel)"), 120)
    browser.set_script_timeout(seconds)
    said = browser.execute_async_script("const done = arguments[0]; jupyterapp.commands.execute('notebook:run-all-cells').then(() => done('ran'), e => done(String(e)))")
    assert said=='ran'
    return browser.execute_script("""return [...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type=='code').map(c => [c.executionCount, c.outputs.toJSON()])""")


def test_pretrain_runs_in_the_lab_by_its_menu(lab, browser):
    cells = run_all(browser, lab, 'experiments/pretrain.ipynb')
    outputs = [o for _, cell in cells for o in cell]
    assert all(count for count, _ in cells) and not [o for o in outputs if o['output_type']=='error'], outputs
    text = ' '.join(''.join(o.get('text', '')) for o in cells[-1][1])
    assert 'After ' in text and 'a linear probe reads' in text
    assert sum('image/' in ' '.join(o.get('data', {})) for o in outputs)>=3
    seen = browser.execute_script("const c = jupyterapp.shell.currentWidget.content; c.activeCellIndex = c.widgets.length - 1; c.scrollToItem(c.widgets.length - 1)")
    until(lambda: 'a linear probe reads' in browser.execute_script("return document.querySelector('.jp-Notebook').innerText"))


def test_explorer_has_menus_in_the_lab(lab, browser):
    cells = run_all(browser, lab, 'tutorials/06_explore_results.ipynb')
    assert not [o for _, cell in cells for o in cell if o['output_type']=='error']
    browser.execute_script("const c = jupyterapp.shell.currentWidget.content; const i = c.widgets.findIndex(w => w.model.type=='code' && w.model.outputs.toJSON().some(o => o.data && o.data['application/vnd.jupyter.widget-view+json'])); c.activeCellIndex = i; c.scrollToItem(i)")
    until(lambda: browser.execute_script("return document.querySelectorAll('.jp-OutputArea select').length")>=4)
