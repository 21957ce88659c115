"""The patch types of PATCH: JSON patch and merge patch."""

import json
from collections.abc import Callable
from json import decoder, scanner
from typing import Any

import jsonpatch
import jsonpointer

from tests.support.kube.objects import ApiError, Json, bad_request

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
# Characters that Go escapes in JSON although it need not.
_GO_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


class Written(str):
    """A string of a patch with its JSON text, quotes and escapes included."""

    raw: str


class _Decoder(json.JSONDecoder):
    """Decodes JSON with all strings except keys as `Written`."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_string = _parse_string
        # The scanner in C ignores parse_string.
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _parse_string(text: str, end: int, strict: bool = True) -> tuple[Written, int]:
    value, after = decoder.scanstring(text, end, strict)  # type: ignore[attr-defined]
    written = Written(value)
    written.raw = text[end - 1 : after]
    return written, after


def read_patch(content_type: str, body: bytes) -> Callable[[Json], Json]:
    """Return a function that applies the patch to an object; raises ApiError if the patch is invalid."""
    kind = content_type.partition(";")[0].strip()
    if kind not in (MERGE, JSON):
        message = (
            "the body of the request was in an unknown format - accepted media types include: "
            f"{JSON}, {MERGE}, application/apply-patch+yaml"
        )
        raise ApiError(415, "UnsupportedMediaType", message)
    try:
        patch = _Decoder().decode(body.decode())
    except ValueError as error:
        raise bad_request(f"error decoding patch: {error}") from error
    if kind == MERGE:
        if not isinstance(patch, dict):
            raise bad_request("error decoding patch: not an object")
        return lambda data: merged(data, patch)
    if not isinstance(patch, list):
        raise bad_request("error decoding patch: not a list of operations")
    return lambda data: _json_patched(data, patch)


def merged(data: Json, patch: Json) -> Json:
    """Apply a merge patch (RFC 7386)."""
    result = dict(data)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            known = result.get(key)
            result[key] = merged(known if isinstance(known, dict) else {}, value)
        else:
            result[key] = value
    return result


def _json_patched(data: Json, patch: list[Json]) -> Json:
    try:
        for step in patch:
            if step.get("op") == "test":
                found = jsonpointer.resolve_pointer(data, step["path"], None)
                if not is_same(found, step.get("value")):
                    raise jsonpatch.JsonPatchTestFailed(step["path"])
            else:
                data = jsonpatch.apply_patch(data, [step])
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, KeyError) as error:
        # The real server gives no more details, for a failed test and for a missing path.
        raise ApiError(
            422, "Invalid", "the server rejected our request due to an error in our request"
        ) from error
    return data


def is_same(found: Any, wanted: Any) -> bool:
    """Compare like the API server for `test`: strings by their JSON text, its own side as written by Go.

    So a test of a text with `<`, `>` or `&` fails unless the patch escapes them, and one that escapes other
    characters than Go fails, too.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(is_same(found[key], wanted[key]) for key in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(is_same, found, wanted))
    if isinstance(found, str) and isinstance(wanted, Written):
        return json.dumps(found, ensure_ascii=False).translate(_GO_ESCAPES) == wanted.raw
    return type(found) is type(wanted) and bool(found == wanted)
