"""The check on the project's words: old words and names, openings of docstrings, long files."""

import pytest
from deploy.checks.words import complaints_about, persons_per_thousand, words_in

OLD = "wi" + "sh"


@pytest.mark.parametrize(
    ("line", "term"),
    [
        (f"# the {OLD} of a client", "request"),
        (f"# all {OLD}es", "request"),
        ("# no" + "body waits", "no one"),
        ("# it " + "tel" + "ls the client", "reports"),
        ("# for" + " ever", "forever"),
        ("link.mark_" + "broken()", "request_reconnect"),
    ],
)
def test_an_old_word_is_reported_with_the_term_that_replaced_it(line: str, term: str) -> None:
    [(number, complaint)] = words_in(f"x = 1\n{line}\n")
    assert number == 2
    assert term in complaint


@pytest.mark.parametrize("line", ["# anyone", "# intelligible", "# foretold", "# forever", "Swishing = 1"])
def test_words_that_only_contain_an_old_word_pass(line: str) -> None:
    assert list(words_in(line)) == []


def test_a_docstring_that_opens_with_a_question_word_is_reported() -> None:
    source = 'def f() -> None:\n    """Whether it is open."""\n'
    assert [number for number, _ in complaints_about("consumer/x.py", source)] == [1]
    assert (
        list(complaints_about("consumer/x.py", source.replace("Whether it is", "Return whether it is"))) == []
    )


def test_a_long_file_is_reported_unless_it_is_a_test() -> None:
    text = "x = 1\n" * 401
    assert "split" in next(complaints_about("consumer/x.py", text))[1]
    assert list(complaints_about("tests/x.py", text)) == []


def test_unnamed_persons_are_counted_in_docstrings_and_comments_only() -> None:
    source = '"""One who reads."""\nwho = "who"  # who knows\n'
    assert persons_per_thousand([source]) == pytest.approx(1000 * 2 / 5)
