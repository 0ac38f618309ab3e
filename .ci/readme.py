"Write README.md from nbs/index.ipynb; with --check, only say whether they agree."
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDDEN = '#| hide', '#| default_exp', '#| eval: false'


def relinked(text: str) -> str:
    "The text with links that lead from the root of the repository where they led from the notebook's folder."
    return re.sub(r'(\]\()(?![a-z]+:|#)([^)\s]+)', lambda m: m[1] + posixpath.normpath(f'nbs/{m[2]}'), text)


def readme(notebook: Path) -> str:
    "The notebook as Markdown: prose with its links from here, code as blocks, printed output below it; of cells marked `echo: false` what they show."
    parts = ['<!-- written from nbs/index.ipynb by .ci/readme.py; edit the notebook -->']
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type']=='markdown': parts.append(relinked(source))
        elif source.startswith('#| echo: false'): parts += [relinked(''.join(o['data']['text/markdown']).strip()) for o in cell['outputs']]
        elif source and not source.startswith(HIDDEN):
            parts.append(f'```python\n{source}\n```')
            printed = ''.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in cell['outputs']).rstrip()
            if printed: parts.append(f'```\n{printed}\n```')
    return '\n\n'.join(parts) + '\n'


if __name__=='__main__':
    text, target = readme(ROOT/'nbs'/'index.ipynb'), ROOT/'README.md'
    if '--check' not in sys.argv: target.write_text(text, encoding='utf-8')
    elif not target.exists() or target.read_text(encoding='utf-8')!=text: sys.exit('README.md differs from nbs/index.ipynb; remedy: make sync')
