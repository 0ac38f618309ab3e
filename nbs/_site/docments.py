"What a cell of source defines, read without running it: symbols, signatures and the comments beside their parameters."
import ast
import inspect
import io
import tokenize
from dataclasses import dataclass, field


@dataclass
class Parameter:
    name: str        # with its stars; 'returns' for what comes back
    type: str        # as written, '' where nothing is
    default: str
    meaning: str     # the comment


@dataclass
class Symbol:
    kind: str                 # the Sphinx directive: function, class, method, property or data
    name: str
    doc: str = ''
    parameters: list = field(default_factory=list)
    methods: list = field(default_factory=list)

    @property
    def signature(self):
        "Names and defaults; the types stand in the table."
        if self.kind in ('data', 'property'): return self.name
        shown = [p.name + (f'={p.default}' if p.default else '') for p in self.parameters if p.name!='returns']
        return self.name if self.kind=='class' and not shown else f"{self.name}({', '.join(shown)})"


class Comments:
    "The comments of a source, by line."
    def __init__(self, source):
        self.beside, self.alone = {}, {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type==tokenize.COMMENT:
                where = self.beside if token.line[:token.start[1]].strip() else self.alone
                where[token.start[0]] = token.string.lstrip('# ').strip()

    def of(self, first, last):
        "The comment of something that stands on lines `first` to `last`: lines above it, then beside it."
        above = []
        while (first := first-1) in self.alone: above.insert(0, self.alone[first])
        return ' '.join(above + [self.beside[n] for n in (last,) if n in self.beside])


def text(source, node): return '' if node is None else ' '.join((ast.get_source_segment(source, node) or '').split())


def annotation(source, node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else text(source, node)


def call_parameters(source, comments, function, skip_first):
    "The parameters of a function, its bare star and what it returns included."
    a, body = function.args, function.body[0].lineno
    plain, found = [*a.posonlyargs, *a.args], []
    rows = [('', arg, default) for arg, default in zip(plain, [None]*(len(plain)-len(a.defaults)) + a.defaults)][skip_first:]
    if a.vararg: rows.append(('*', a.vararg, None))
    elif a.kwonlyargs: rows.append(None)
    rows += [('', arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: rows.append(('**', a.kwarg, None))
    last_line = function.lineno
    for row in rows:
        if row is None: found.append(Parameter('*', '', '', '')); continue
        stars, arg, default = row
        last_line = default.end_lineno if default else arg.end_lineno
        meaning = comments.of(arg.lineno, last_line) if last_line<body else ''
        found.append(Parameter(stars + arg.arg, annotation(source, arg.annotation), text(source, default), meaning))
    if function.returns:
        line = function.returns.end_lineno
        meaning = comments.beside.get(line, '') if line<body else ''
        if meaning and line==last_line:           # one line for both: the comment speaks of the result
            for p in found: p.meaning = '' if p.meaning==meaning else p.meaning
        if (kind := annotation(source, function.returns))!='None': found.append(Parameter('returns', kind, '', meaning))
    return found


def class_fields(source, comments, node):
    "The annotated names of a class body, which a dataclass or a model takes as its parameters."
    return [Parameter(n.target.id, annotation(source, n.annotation), text(source, n.value), comments.of(n.lineno, n.end_lineno))
            for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith('_')]


def decorators(node): return {ast.unparse(d).split('(')[0].split('.')[-1] for d in node.decorator_list}


def methods(source, comments, node):
    "The public methods of a class that say what they do."
    for f in node.body:
        if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) or f.name=='__init__': continue
        if f.name.startswith('_') and not f.name.endswith('__'): continue
        marks = decorators(f)
        parameters = [] if marks&{'property', 'cached_property'} else call_parameters(source, comments, f, 'staticmethod' not in marks)
        if ast.get_docstring(f) or any(p.meaning for p in parameters):
            yield Symbol('property' if marks&{'property', 'cached_property'} else 'method', f.name, ast.get_docstring(f) or '', parameters)


def symbols(
    source:str,   # the source of one exported cell
)->list[Symbol]:  # in the order of the source, private names left out
    "What the cell gives to its module."
    comments, found = Comments(source), []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            symbol = Symbol('function', node.name, ast.get_docstring(node) or '', call_parameters(source, comments, node, False))
        elif isinstance(node, ast.ClassDef):
            init = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name=='__init__']
            parameters = call_parameters(source, comments, init[0], True) if init else class_fields(source, comments, node)
            symbol = Symbol('class', node.name, ast.get_docstring(node) or '', parameters, list(methods(source, comments, node)))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if not isinstance(target, ast.Name): continue
            symbol = Symbol('data', target.id, comments.of(node.lineno, node.end_lineno))
        else: continue
        symbol.doc = inspect.cleandoc(symbol.doc)
        if not symbol.name.startswith('_'): found.append(symbol)
    return found


def only_imports(source): return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


def imported(source, package):
    "Names that `source` imports from `package`, with the module each comes from; nothing for source that is not plain Python."
    try: tree = ast.parse(source)
    except SyntaxError: return {}
    return {alias.asname or alias.name: f'{node.module}.{alias.name}' for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(f'{package}.') for alias in node.names}


def modules(source, package):
    "Modules of `package` that `source` imports from, by name; lines of IPython's are passed over."
    plain = '\n'.join('' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines())
    names = [node.module or '' for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.ImportFrom)
             and (node.level==1 or (node.module or '').startswith(f'{package}.'))]
    return {name.removeprefix(f'{package}.').split('.')[0] for name in names}
