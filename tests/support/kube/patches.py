"""Changes to objects as PATCH has them."""

import json
from collections.abc import Callable

import jsonpatch
import jsonpointer

from tests.support.kube.objects import ApiError, Json, bad_request

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"


def read_patch(content_type: str, body: bytes) -> Callable[[Json], Json]:
    """Return what the patch makes of an object; raises ApiError for what is no patch."""
    kind = content_type.partition(";")[0].strip()
    if kind not in (MERGE, JSON):
        message = (
            "the body of the request was in an unknown format - accepted media types include: "
            f"{JSON}, {MERGE}, application/apply-patch+yaml"
        )
        raise ApiError(415, "UnsupportedMediaType", message)
    try:
        patch = json.loads(body)
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
        result: Json = jsonpatch.apply_patch(data, patch)
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        # The real server says no more than this, be it a failed test or a path that is not there.
        raise ApiError(
            422, "Invalid", "the server rejected our request due to an error in our request"
        ) from error
    return result
