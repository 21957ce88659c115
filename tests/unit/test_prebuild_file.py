"""Lists of repositories for `prebuild`: each line becomes a request or is named as bad."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rabbit2docker.cli.prebuild_file import Entry, read_entries


def shown(entry: Entry) -> tuple[object, ...]:
    return entry.lines, entry.request and (entry.request.provider, entry.request.spec)


def test_lines_are_urls_with_or_without_a_version_or_specs() -> None:
    text = """
    # before the workshop
    https://github.com/o/r
    https://github.com/o/r v1.0
    gh o/other/HEAD
    git@git.example.org:x/y main

    https://github.com/o/r
    """
    assert [shown(entry) for entry in read_entries(text)] == [
        ((3, 8), ("gh", "o/r/HEAD")),
        ((4,), ("gh", "o/r/v1.0")),
        ((5,), ("gh", "o/other/HEAD")),
        ((6,), ("git", "git%40git.example.org%3Ax%2Fy/main")),
    ]


def test_csv_has_a_line_of_headings() -> None:
    text = 'Repository,ref,subdir\nhttps://github.com/o/r,,"a,b"\nhttps://github.com/o/r,v1\n'
    found = read_entries(text)
    assert [shown(entry) for entry in found] == [
        ((2,), ("gh", "o/r/HEAD")),
        ((3,), ("gh", "o/r/v1")),
    ]
    assert found[0].request is not None
    assert found[0].request.subdir == "a,b"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("hello", 1, "it names no repository; write `URL`, `URL REF` or `PROVIDER SPEC`"),
        ("\n\none two three", 3, "it names no repository; write `URL`, `URL REF` or `PROVIDER SPEC`"),
        ("gh only/two", 1, 'Did you mean "only/two/HEAD"?'),
        ("nonsense a/b/c", 1, "There is no provider 'nonsense'"),
        ("ftp://example.org/x", 1, "begins with `ftp:`"),
        ("repository,colour\nhttps://github.com/o/r,green", 2, "the column 'colour' is not known"),
        ("repository,ref\nhttps://github.com/o/r,a,b", 2, "it has 3 values for 2 columns"),
        ('repository,ref\n"https://github.com/o/r,a', 2, "it is not CSV"),
        ("repository,ref\n,main", 2, "it names no repository"),
        ("repository,subdir\nhttps://github.com/o/r,../x", 2, "must be a relative path inside"),
    ],
)
def test_a_bad_line_is_named_with_its_number(text: str, line: int, problem: str) -> None:
    [entry] = read_entries(text)
    assert entry.lines == (line,)
    assert problem in entry.problem


@given(st.text("ab/:# \n,\"'\\\x00é@.", max_size=200))
@example("\ufeffhttps://github.com/o/r\r\n")
def test_no_line_is_lost_whatever_it_holds(text: str) -> None:
    lines = text.removeprefix("\ufeff").splitlines()
    meant = [n for n, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")]
    found = sorted(number for entry in read_entries(text) for number in entry.lines)
    assert found == meant
