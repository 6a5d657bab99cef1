"""Count the lines of code of folders: no blank lines, comments or docstrings.

    python tools/count_code.py [FOLDER ...]     # default: vidshard and stage1

Formatting counts: run `ruff format` before comparing two versions.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

_NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def code_lines(source: str) -> int:
    """Return the number of lines of Python `source` that hold code.

    >>> code_lines('"About."\\n\\n# why\\nx = 1  # one\\n')
    1
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line for token in tokens if token.type not in _NOT_CODE for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)


def main() -> None:
    total = 0
    for folder in sys.argv[1:] or ["vidshard", "stage1"]:
        files = sorted(Path(folder).rglob("*.py"))
        count = sum(code_lines(file.read_text(encoding="utf-8")) for file in files)
        print(f"{count:>7,}  {folder}, {len(files)} files")
        total += count
    print(f"{total:>7,}  in all")


if __name__ == "__main__":
    main()
