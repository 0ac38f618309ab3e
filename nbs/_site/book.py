"A Sphinx extension: nbdev notebooks become pages of a book, and formulas are drawn in the browser by the KaTeX beside it."
import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

from docments import imported, only_imports, symbols

DIRECTIVE = re.compile(r'#\|\s*([\w-]+):?\s*(.*)')
EXPORTS = {'export', 'exports'}     # `exporti` stays inside its module
WIDGET = 'application/vnd.jupyter.widget-view+json'
VERBATIM = re.compile(r'(`+.+?`+|\$[^$]+\$)')


def markdown(text):
    "Text from a docstring or a comment as markdown: code and formulas stay, everything else is meant literally."
    parts = VERBATIM.split(' '.join(text.split()))
    for i in range(0, len(parts), 2): parts[i] = re.sub(r'([\\*_\[\]{}])', r'\\\1', parts[i]).replace('<', '&lt;')
    return ''.join(parts)


def code(text): return f'`{text}`' if text else ''


def fence(directive, body, *options):
    "A MyST directive around `body`, with more backticks than the body has in a row."
    ticks = '`'*(1 + max([2, *(len(run) for run in re.findall('`+', body))]))
    return '\n'.join([f'{ticks}{{{directive.split(" ", 1)[0]}}} {directive.partition(" ")[2]}', *options, '', body, ticks])


def table(parameters):
    "Name, type, default and meaning, a row for each parameter; a column that would stay empty is left out."
    if not any(p.type or p.meaning for p in parameters): return ''
    cells = [[code(p.name) if p.name!='returns' else '*returns*', code(p.type), code(p.default), markdown(p.meaning)]
             for p in parameters if p.name!='*']
    columns = [(title, *column) for title, *column in zip(('name', 'type', 'default', 'meaning'), *cells) if any(column)]
    rows = ['| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in zip(*columns)]
    return '\n'.join([rows[0], '| --- '*len(columns) + '|', *rows[1:]])


def entry(symbol, *options, after=''):
    "One symbol as a directive of Sphinx's Python domain, with its table."
    body = [markdown(symbol.doc), table(symbol.parameters), after, *map(entry, symbol.methods)]
    return fence(f'py:{symbol.kind} {symbol.signature}', '\n\n'.join(filter(None, body)), *options)


def directives(
    source:str,  # of a code cell
)->tuple:        # {name: argument}, and the source without those lines
    "nbdev's `#| name argument` lines at the top of a cell, and the rest."
    lines, found = source.splitlines(), {}
    while lines and (match := DIRECTIVE.match(lines[0])): found[match[1]] = match[2]; lines.pop(0)
    return found, '\n'.join(lines).strip('\n')


def settled(outputs):
    "Outputs as a screen shows them at the end: a progress bar in its last state."
    found = []
    for output in outputs:
        if WIDGET in output.get('data', {}): continue       # menus need a kernel behind them; the pictures beside them stay
        if output['output_type']!='stream': found.append(output); continue
        last = found[-1] if found else {}
        if last.get('output_type')=='stream' and last['name']==output['name']: last['text'] += ''.join(output['text'])
        else: found.append(output | dict(text=''.join(output['text'])))
    for output in found:
        if output['output_type']=='stream': output['text'] = re.sub(r'[^\n]*\r(?!\n)(?=[^\n])', '', output['text'])
        if html := ''.join(output.get('data', {}).get('text/html', '')):   # icons of xarray: the labels around them have titles
            output['data'] = output['data'] | {'text/html': re.sub(r'<svg(?![^>]*\b(?:role|aria-))', '<svg aria-hidden="true"', html)}
    return found


class Page:
    "A notebook on its way to a page."
    def __init__(self, notebook, *, package, link=lambda target: target):
        self.package, self.link, self.module, self.names, self.symbols, self.cells = package, link, None, {}, {}, []
        for cell in notebook['cells']: self.add(cell, ''.join(cell['source']))

    def add(self, cell, source):
        if cell['cell_type']!='code':
            return self.cells.append(cell | dict(source=re.sub(r'(\]\(|src=")([^)"\s]+)', lambda m: m[1] + self.link(m[2]), source)))
        marks, source = directives(source)
        self.module = marks.get('default_exp', self.module)
        self.names |= imported(source, self.package)
        if 'hide' in marks or not source: return
        alt = marks.get('fig-alt') or self.caption()
        wide = any(float(width)>560 for o in cell['outputs'] for width in re.findall(r'<svg[^>]* width="([\d.]+)pt"', ''.join(o.get('data', {}).get('image/svg+xml', ''))))
        image = (dict(alt=alt) if alt else {}) | (dict(classes='wide') if wide else {})      # a telephone scrolls wide figures
        shown = dict(image=image) if image else {}
        meta = dict(tags=list(cell['metadata'].get('tags', [])), mystnb=shown)
        if marks.get('echo')=='false': meta['tags'].append('remove-input')
        if marks.get('code-fold')=='true':
            meta['tags'].append('hide-input')
            shown |= dict(code_prompt_show='Show the code', code_prompt_hide='Hide the code')
        if marks.keys() & EXPORTS:
            meta['tags'].append('exported')
            if only_imports(source):
                meta['tags'].append('hide-input')
                shown |= dict(code_prompt_show='What this chapter imports', code_prompt_hide='What this chapter imports')
            else: self.export(symbols(source))
        if 'injected-parameters' in meta['tags']: source = re.sub(r'^out = .*\n?', '', source, flags=re.M)    # a folder of whoever ran it
        self.cells.append(cell | dict(source=source, metadata=meta, outputs=settled(cell['outputs'])))

    def caption(self):
        "The text of a `**Figure 1.** ...` that stands right before, for those who can't see the figure."
        text = ''.join(self.cells[-1]['source']) if self.cells else ''
        match = re.search(r'\*\*Figure \d+\.\*\* (.+)', text, re.S)
        return ' '.join(re.sub(r'[*`$\\]', '', match[1]).split()) if match else ''

    def use(self, docname, origin):
        "How to have this notebook: the file, JupyterLab, and the command that runs it again; below its title."
        run = 'contrastive-nb run' if any('parameters' in c['metadata'].get('tags', ()) for c in self.cells) else 'jupyter execute'
        first, name = self.cells[0], origin.removeprefix('nbs/')
        links = f'{{download}}`Download </{docname}.ipynb>` · JupyterLab: `make lab`, then open `{name}` · Run again: `{run} {origin}`'
        head = re.match(r'(# [^\n]*\n+(?:> [^\n]*\n?)*)(.*)', ''.join(first['source']), re.S)
        if head: self.cells[0] = first | dict(source=f'{head[1]}\n```{{container}} use\n{links}\n```\n\n{head[2]}')

    def export(self, found):
        "Remember what a cell defines; the line above its code leads to the reference, and an anchor leads back."
        if not found: return
        names = {s.name: f'{self.package}.{self.module}.{s.name}' for s in found}
        anchor = f'{self.module}-cell-{len(self.cells)}'
        links = ' '.join(f'{{py:obj}}`{name} <{target}>`' for name, target in names.items())
        self.text(f'({anchor})=\n```{{container}} exports\n{links}\n```')
        self.symbols |= {s.name: (s, anchor) for s in found}
        self.names |= names

    def text(self, source): self.cells.append(dict(cell_type='markdown', metadata={}, source=source))


def link_of(app, docname):
    "A function from a link as it stands in a notebook to the page of the site, or the file on the web, that it means."
    def link(target):
        if re.match(r'[a-z]+:|#|/', target): return target
        path, hash, anchor = target.partition('#')
        root, parts = Path(app.config.book_root), [p for p in Path(path).parts if p not in ('.', '..', 'nbs')]
        page = Path(*parts[:-1], re.sub(r'^\d\d_', '', parts[-1])) if parts else Path()
        page = {'CHANGELOG.md': Path('changelog.md'), 'CITATION.cff': Path('cite.md')}.get(path.removeprefix('../'), page)
        for page in (page, page.with_suffix('.md'), Path(docname).parent/page):      # the last: a neighbour
            if (app.srcdir/page).is_file(): return f'/{page}{hash}{anchor}'
        file = next((f for f in (root/Path(*parts), root/'nbs'/Path(*parts)) if f.exists()), None)
        if file and file.suffix=='.py' and hash:            # a function of a test
            lines = file.read_text(encoding='utf-8').splitlines()
            anchor = next((f'L{n}' for n, line in enumerate(lines, 1) if re.match(rf'(def|class) {re.escape(anchor)}\b', line)), '')
        if not file or hash and not anchor: return target   # Sphinx warns about it
        if file.suffix in ('.png', '.svg', '.jpg', '.gif', '.webp'):
            (app.srcdir/'_figures').mkdir(exist_ok=True)
            return '/' + str(Path(shutil.copy(file, app.srcdir/'_figures')).relative_to(app.srcdir))
        return f"{app.config.book_repository}/blob/{app.config.book_branch}/{file.relative_to(root)}{hash}{anchor}"
    return link


def read_source(app, docname, source):
    "Rewrite a notebook, or a run of it, before it is parsed; the file itself stays as it is, to be downloaded."
    if not str(app.env.doc2path(docname)).endswith('.ipynb'): return
    run = app.srcdir/f'_runs/{docname}.ipynb'
    notebook = json.loads(run.read_text(encoding='utf-8') if run.is_file() else source[0])
    page = Page(notebook, package=app.config.book_package, link=link_of(app, docname))
    origin = json.loads((app.srcdir/'origin.json').read_text(encoding='utf-8'))
    if docname in origin and page.cells: page.use(docname, origin[docname])
    if docname==app.config.root_doc: page.text((app.srcdir/'toctree.txt').read_text(encoding='utf-8'))
    if not hasattr(app.env, 'book_names'): app.env.book_names = {}
    app.env.book_names[docname] = page.names
    cells = [cell | dict(id=f'cell-{i}') for i, cell in enumerate(page.cells)]
    metadata = notebook['metadata'] | dict(language_info=dict(name='python', pygments_lexer='ipython3'))
    source[0] = json.dumps(dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5))


def described(app, doctree):
    "A figure that says nothing to those who can't see it is a warning, hence an error."
    for image in doctree.findall(nodes.image):
        if not image.get('alt', '').strip(): logging.getLogger(__name__).warning('a figure without alternative text: `#| fig-alt: ...` in its cell gives it', location=image)


def link_names(app, doctree, docname):
    "Names in the prose of a page that it defines or imports lead to the reference."
    names = getattr(app.env, 'book_names', {}).get(docname.removeprefix('api/'), {})
    for literal in list(doctree.findall(nodes.literal)):
        target, parent = names.get(literal.astext().removesuffix('()')), literal.parent
        if not target or isinstance(parent, (nodes.title, nodes.reference)): continue
        link = app.env.get_domain('py').resolve_xref(app.env, docname, app.builder, 'obj', target, addnodes.pending_xref(), literal.deepcopy())
        if link is not None: parent.replace(literal, link)


def module_source(app, name):
    "The text of one of our modules, so that nothing needs to be imported to show it."
    file = Path(app.config.book_root, *name.split('.')).with_suffix('.py')
    if not file.exists(): return None
    analyzer = ModuleAnalyzer.for_file(file, name)
    return analyzer.find_tags() and analyzer.code, analyzer.tags


def formula(tag):
    def visit(self, node):
        self.body.append(f'{self.starttag(node, tag, "", CLASS="math")}{self.encode(node.astext())}</{tag}>')
        raise nodes.SkipNode
    return visit, None


def add_katex(app, pagename, templatename, context, doctree):
    if doctree is None or not any(doctree.findall(lambda n: isinstance(n, (nodes.math, nodes.math_block)))): return
    app.add_css_file('katex/katex.min.css')
    app.add_js_file('katex/katex.min.js', loading_method='defer')
    app.add_js_file('formulas.js', loading_method='defer', priority=900)


def setup(app):
    for name in ('root', 'package', 'repository', 'branch'): app.add_config_value(f'book_{name}', '', 'env', types=(str,))
    app.add_html_math_renderer('katex', formula('span'), formula('div'))
    app.connect('source-read', read_source)
    app.connect('doctree-read', described)
    app.connect('doctree-resolved', link_names)
    app.connect('viewcode-find-source', module_source)
    app.connect('html-page-context', add_katex)
    return dict(version='1', parallel_read_safe=False, parallel_write_safe=True)
