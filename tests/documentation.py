"""The pages of the documentation: programs, as a reader would type them, and links."""

import ast
import io
import pathlib
import re
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
}
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PEERS = "torch|keras|haiku|equinox|onnx|onnxruntime"
_PEER = re.compile(rf"\b({_PEERS})\b")


def blocks(page):
    """The Python blocks of a page: ``(line, code)``, the line that of the code."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(1)), match.group(1))
        for match in _BLOCK.finditer(text)
    ]


def broken_links(page):
    """The links of a page that lead to no file or heading of the project."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


def _anchors(path):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def needs_peers(code):
    """Whether a block names another library, which most tests run without."""
    return bool(_PEER.search(code))


def run(page, *, with_peers=False):
    """Runs a page's blocks from the first to the last, in one namespace.

    Where a line is an expression and its comment a literal, they have to be equal.
    """
    names = {"__name__": "__main__"}
    for start, code in blocks(page):
        if needs_peers(code) and not with_peers:
            continue
        tree = ast.parse("\n" * start + code, page)
        comments = _literals(start, code)
        for statement in tree.body:
            expected = comments.get(statement.end_lineno)
            if expected is not None and isinstance(statement, ast.Expr):
                got = eval(
                    compile(ast.Expression(statement.value), page, "eval"), names
                )
                where = f"{page}:{statement.end_lineno}"
                assert got == expected[0], f"{where}: {got!r} is not {expected[0]!r}"
            else:
                module = ast.Module([statement], [])
                exec(compile(module, page, "exec"), names)


def _literals(start, code):
    """The comments of a block that are literals, by line."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            try:
                value = ast.literal_eval(token.string.lstrip("# "))
            except (SyntaxError, ValueError):
                continue
            found[start + token.start[0]] = (value,)
    return found
