"""Validation errors as sentences for the author of a message."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

LISTED: Final = 8
"""Number of problems listed in one text; the rest is only counted."""
SHOWN_CHARACTERS: Final = 64
"""Length to which input is cut before a sentence repeats it."""

_KIND_OF: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_ID_FORM: Final = "must have 1 to 128 letters, digits, `-` or `_` and no other characters"
_FORM_OF: Final[Mapping[str, str]] = {
    "provider": "must be the short name of a provider, such as `gh` or `git`",
    "spec": "must not be empty or contain control characters",
    "request_id": _ID_FORM,
    "build_id": _ID_FORM,
    "replay_of": _ID_FORM,
    "credentials": "must be the name of a Secret, as `rabbit2docker.client.personal_secret` gives it, and never a token",
}


def kind_of(value: object) -> str:
    """Return the type of a JSON value in words."""
    return _KIND_OF.get(type(value), type(value).__name__)


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return foreign text in a form that fits into a sentence: cut to `limit`, without control characters."""
    clean = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _where(problem: ErrorDetails) -> str:
    return shown(".".join(str(part) for part in problem["loc"] if part != "[key]"))


def _wrong_type(expected: str) -> Callable[[ErrorDetails], str]:
    return lambda problem: f"`{_where(problem)}` must be {expected}, not {kind_of(problem['input'])}"


def _limit(words: str) -> Callable[[ErrorDetails], str]:
    return lambda problem: f"`{_where(problem)}` must {words.format_map(problem.get('ctx', {}))}"


def _pattern(problem: ErrorDetails) -> str:
    form = _FORM_OF.get(str(problem["loc"][0]), "does not have the required form")
    return f"`{_where(problem)}` {form}"


def _from_validator(problem: ErrorDetails) -> str:
    words = shown(str(problem.get("ctx", {}).get("error", problem["msg"])), 4 * SHOWN_CHARACTERS)
    return f"`{_where(problem)}` {words}" if problem["loc"] else words


def _other(problem: ErrorDetails) -> str:
    return f"`{_where(problem)}`: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


_TIME: Final = _limit("be a time with a time zone, such as 2026-01-31T12:00:00Z")
_SENTENCE_OF: Final[Mapping[str, Callable[[ErrorDetails], str]]] = {
    "missing": lambda problem: f"`{_where(problem)}` is missing",
    "string_type": _wrong_type("a string"),
    "bool_type": _wrong_type("true or false"),
    "dict_type": _wrong_type("an object"),
    "int_type": lambda problem: (
        f"`{_where(problem)}` must be a whole number, not "
        + ("one with a fraction" if isinstance(problem["input"], float) else kind_of(problem["input"]))
    ),
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "timezone_aware": _TIME,
    "string_too_long": _limit("have at most {max_length} characters"),
    "string_too_short": _limit("not be empty"),
    "too_long": _limit("have at most {max_length} entries"),
    "greater_than_equal": _limit("be at least {ge}"),
    "less_than_equal": _limit("be at most {le}"),
    "string_pattern_mismatch": _pattern,
    "value_error": _from_validator,
}


def _unknown_field(problem: ErrorDetails, known: Sequence[str]) -> str:
    return _unknown_name(str(problem["loc"][-1]), known)


def _unknown_name(name: str, known: Sequence[str]) -> str:
    similar = get_close_matches(name[:SHOWN_CHARACTERS], known, n=1)
    hint = f"; did you mean `{similar[0]}`?" if similar else ""
    return f"unknown field `{shown(name)}`{hint}"


def ignored_fields(names: Sequence[str], fields: Mapping[str, Any]) -> str | None:
    """Return the notice for fields that a message has and this version does not know; None without any."""
    if not names:
        return None
    sentences = [_unknown_name(name, list(fields)) for name in names[:LISTED]]
    if len(names) > LISTED:
        sentences.append(f"and {len(names) - LISTED} more")
    return _ended(f"Ignored: {', '.join(sentences)}")


def _sentence(problem: ErrorDetails, known: Sequence[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return _unknown_field(problem, known)
    return _SENTENCE_OF.get(problem["type"], _other)(problem)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", ".")) else sentence + "."


def describe(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """Return all problems as one short text; `fields` are the fields that the message may have."""
    known = list(fields)
    problems = error.errors(include_url=False)
    sentences = [_sentence(problem, known) for problem in problems[:LISTED]]
    if len(problems) > LISTED:
        sentences.append(f"and {len(problems) - LISTED} more")
    if len(sentences) == 1:
        text = sentences[0][:1].upper() + sentences[0][1:]
    else:
        text = f"{len(problems)} problems: " + ", ".join(
            f"({number}) {sentence}" for number, sentence in enumerate(sentences, start=1)
        )
    if any(problem["type"] == "extra_forbidden" for problem in problems):
        text = f"{_ended(text)} Known fields: {', '.join(known)}"
    return _ended(text)
