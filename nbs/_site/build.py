"Build the site: `python nbs/_site/build.py`, and `--serve` to look at it. Experiments are executed once and kept."
import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from configparser import ConfigParser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from sphinx.cmd.build import main as sphinx

sys.dont_write_bytecode = True     # nothing is written beside the sources
from book import Page, entry, fence
from runs import executed

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
PARTS = {0: 'Geometry', 5: 'Machine', 10: 'Measurement', 12: 'Meeting place'}   # first chapter of each
FRONT = '# {title}\n\n> {description}\n\nStart with the first chapter, [{first}]({first}.ipynb), or look a name up in the [API reference](api.md).\n'


def chapters(nbs):
    "Page name and notebook of every chapter, by part, in reading order: unnumbered ones are the ground."
    parts = {}
    for file in sorted(nbs.glob('*.ipynb'), key=lambda f: (f.name[:1].isdigit(), f.name)):
        number, name = re.fullmatch(r'(?:(\d+)_)?(\w+)', file.stem).groups()
        if file.stem=='index': continue
        part = 'Ground' if number is None else PARTS[max(n for n in PARTS if n<=int(number))]
        parts.setdefault(part, {})[name] = file
    return parts


def api(parts, package, source):
    "Pages of reference: one with every module and its promise, and one a module with its symbols."
    (source/'api').mkdir()
    lines = ['# API reference', '', 'Every module is exported from the chapter of the same name, which explains it and proves it; {ref}`every name <genindex>` from A to Z.']
    for part, pages in parts.items():
        lines += ['', f'## {part}', '']
        for name, file in pages.items():
            page, path = Page(notebook := json.loads(file.read_text(encoding='utf-8')), package=package), f'{package}.{name}'
            promise = re.search(r'^> (.+)', ''.join(notebook['cells'][0]['source']), re.M)
            promise = promise[1] if promise else ''
            lines += [f'[{name}](api/{name}.md)', f': {promise}', '']
            body = [f'# {name}', f'> {promise}', f'Chapter: {{doc}}`/{name}`', fence(f'py:module {path}', '')]
            body += [entry(s, f':module: {path}', after=f'{{ref}}`Code and tests <{cell}>`') for s, cell in page.symbols.values()]
            (source/f'api/{name}.md').write_text('\n\n'.join(body) + '\n', encoding='utf-8')
    lines += ['```{toctree}', ':hidden:', '', *(f'api/{name}' for pages in parts.values() for name in pages), '```']
    (source/'api.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def cite(file):
    "A page from CITATION.cff: a BibTeX entry, and the file itself."
    text = file.read_text(encoding='utf-8')
    c = yaml.safe_load(text)
    who = ' and '.join(a.get('name') or ', '.join(filter(None, (a.get('family-names'), a.get('given-names')))) for a in c['authors'])
    fields = dict(title='{' + c['title'] + '}', author=who, version=c.get('version'), year=str(c.get('date-released', ''))[:4],
                  doi=c.get('doi'), url=c.get('url') or c.get('repository-code'))
    bibtex = ',\n'.join(f'  {k} = {{{v}}}' for k, v in fields.items() if v)
    key = re.sub(r'\W+', '_', c['title'].split(':')[0]).strip('_').lower()
    return f"# How to cite\n\n{c.get('message', '')}\n\n```bibtex\n@software{{{key},\n{bibtex}\n}}\n```\n\nThe same in `CITATION.cff`:\n\n```yaml\n{text}\n```\n"


def stage(root, source, runs):
    "Lay out the sources of the site in `source`: copies of the notebooks, executed ones beside them (`runs`: page -> file), and the pages made from other files."
    ini = ConfigParser()
    ini.read_string((root/'settings.ini').read_text(encoding='utf-8'))
    s, nbs, parts = ini['DEFAULT'], root/'nbs', chapters(root/'nbs')
    book = {part: {name: file for name, file in pages.items()} for part, pages in parts.items()}
    more = {folder.capitalize(): {f"{folder}/{re.sub(r'^[0-9]{2}_', '', file.stem)}": file for file in sorted((nbs/folder).glob('*.ipynb'))}   # the number is for the order only
            for folder in ('tutorials', 'findings', 'experiments')}
    shown = {caption: pages for caption, pages in {**{c: more[c] for c in ('Tutorials', 'Findings')}, **book, 'Experiments': more['Experiments']}.items() if pages}
    toc, origin = {caption: list(pages) for caption, pages in shown.items()}, {}
    for page, file in (item for pages in shown.values() for item in pages.items()):
        (source/page).parent.mkdir(exist_ok=True)
        shutil.copy2(file, source/f'{page}.ipynb')
        origin[page] = str(file.relative_to(root))
        if page in runs:                                        # shown in its place
            (source/'_runs'/page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(runs[page], source/f'_runs/{page}.ipynb')
    (source/'origin.json').write_text(json.dumps(origin), encoding='utf-8')
    api(parts, s['lib_path'], source)
    toc['Reference'] = ['api']
    if (file := root/'CHANGELOG.md').is_file(): shutil.copy2(file, source/'changelog.md'); toc['Reference'].append('changelog')
    if (file := root/'CITATION.cff').is_file(): (source/'cite.md').write_text(cite(file), encoding='utf-8'); toc['Reference'].append('cite')
    toctree = '\n\n'.join('\n'.join(['```{toctree}', ':hidden:', f':caption: {part}', '', *pages, '```']) for part, pages in toc.items())
    (source/'toctree.txt').write_text(toctree, encoding='utf-8')
    if (file := nbs/'index.ipynb').is_file(): shutil.copy2(file, source/'index.ipynb')
    else:
        first = next(name for pages in parts.values() for name in pages)
        (source/'index.md').write_text(FRONT.format(**s, first=first) + '\n' + toctree, encoding='utf-8')


def build(root, out, runs):
    "Build the site of the project at `root` into the folder `out`, executed notebooks in `runs`; the exit status of Sphinx, warnings are errors."
    if out.exists() and not (out/'objects.inv').exists() and any(out.iterdir()): sys.exit(f'build: {out} is not a site, choose another folder')
    with tempfile.TemporaryDirectory() as folder:
        source, doctrees, html = (Path(folder, name) for name in ('source', 'doctrees', 'html'))
        source.mkdir()
        stage(root, source, runs)
        status = sphinx(['-W', '--keep-going', '-q', '-b', 'html', '-c', str(root/'nbs/_site'), '-d', str(doctrees), str(source), str(html)])
        if (html/'objects.inv').exists():      # whole; a build that broke off leaves the last site in place
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(html, out)
    return status


def serve(folder, port):
    with ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        print(f'http://127.0.0.1:{server.server_port}/ until Ctrl-C', flush=True)
        try: server.serve_forever()
        except KeyboardInterrupt: pass


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('-o', '--out', type=Path, default=ROOT/'_docs/html', help='folder of the finished site')
    parser.add_argument('--runs', type=Path, default=os.environ.get('DOCS_RUNS'), help='folder with executed copies, such as experiments/pretrain.ipynb; nothing is executed then')
    parser.add_argument('--cache', type=Path, default=ROOT/'_docs/runs', help='folder in which executed experiments are kept for the next build')
    parser.add_argument('-j', '--jobs', type=int, default=2, help='experiments executed at a time')
    parser.add_argument('--serve', action='store_true', help='serve it on this machine after building')
    parser.add_argument('--port', type=int, default=8000)
    args = parser.parse_args()
    if args.runs: runs = {str(f.relative_to(args.runs).with_suffix('')): f for f in Path(args.runs).glob('*/*.ipynb')}
    else:
        try: runs = executed(ROOT, 'contrastive_nb', args.cache, args.jobs)
        except RuntimeError as error: sys.exit(str(error))
    if status := build(ROOT, args.out, runs): sys.exit(status)
    print(args.out/'index.html')
    if args.serve: serve(args.out, args.port)
