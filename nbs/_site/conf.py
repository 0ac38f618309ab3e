"Sphinx settings; names, version and addresses come from settings.ini. `build.py` runs it."
import sys
from configparser import ConfigParser
from pathlib import Path

here, root = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path.insert(0, str(here))
ini = ConfigParser()
ini.read_string((root/'settings.ini').read_text(encoding='utf-8'))
settings = ini['DEFAULT']

project, author, release = settings['title'], settings['author'], settings['version']
project_copyright = settings['copyright']
language, smartquotes = 'en', False     # quotes in a table of parameters are Python's
extensions = ['myst_nb', 'sphinx.ext.viewcode', 'book']
exclude_patterns = ['_figures', '_runs']
book_root, book_package = str(root), settings['lib_path']
book_repository, book_branch = settings['git_url'], settings['branch']

# notebooks keep the outputs they were saved with; nothing runs and nothing is fetched while building
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'gfm'     # tables in computed markdown
nb_ipywidgets_js = {}
myst_enable_extensions = ['dollarmath', 'amsmath', 'html_image', 'deflist']
myst_dmath_double_inline = True
myst_heading_anchors = 3

add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
viewcode_follow_imported_members = False

html_theme = 'sphinx_book_theme'
html_math_renderer = 'katex'
html_title = project
html_logo = html_favicon = str(here/'static/logo.svg')
html_static_path = [str(here/'static')]
html_css_files = ['book.css']
html_baseurl = settings['doc_host'] + settings['doc_baseurl'] + '/'
html_domain_indices = False
html_last_updated_fmt = None
html_show_sphinx = False
html_context = dict(default_mode='auto')
html_theme_options = dict(
    logo=dict(text=project, alt_text=project), navbar_start=[], navbar_center=[], navbar_end=[], navbar_persistent=[],
    repository_url=book_repository, use_repository_button=True, use_download_button=True, use_fullscreen_button=False,
    show_navbar_depth=1, show_toc_level=2, home_page_in_toc=True, toc_title='On this page',
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='github-dark',
)
