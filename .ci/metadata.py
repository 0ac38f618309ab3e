"The package's metadata, read from settings.ini, so that each fact stands in one place."
from configparser import ConfigParser
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTRAS = 'train', 'notebooks', 'distributed', 'docs', 'dev'


def metadata(settings: Path) -> dict:
    "The `[project]` fields that `settings` (a settings.ini) declares."
    ini = ConfigParser()
    with open(settings, encoding='utf-8') as f: ini.read_file(f)
    s = ini['DEFAULT']
    extras = {name: s[f'{name}_requirements'].split() for name in EXTRAS if f'{name}_requirements' in s}
    extras['all'] = [requirement for name in ('train', 'notebooks', 'distributed') for requirement in extras[name]]
    extras['dev'] += extras['all'] + extras['docs']
    return dict(
        version=s['version'], description=s['description'], keywords=s['keywords'].split(),
        readme='README.md', license='Apache-2.0', authors=[dict(name=s['author'])],
        classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                     'Programming Language :: Python :: 3', 'Framework :: Jupyter'],
        urls=dict(Source=s['git_url'], Documentation=s['doc_host'] + s['doc_baseurl']),
        scripts=dict(script.split('=') for script in s['console_scripts'].split()),
        dependencies=s['requirements'].split(), **{
            'requires-python': f">={s['min_python']}", 'optional-dependencies': extras,
            'entry-points': {'nbdev': {s['lib_path']: f"{s['lib_path']}._modidx:d"}}})


class SettingsHook(MetadataHookInterface):
    def update(self, project: dict) -> None: project.update(metadata(Path(self.root)/'settings.ini'))
