"""Inputs for fuzzing: valid ones with a few things wrong, which go deeper than noise."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

TestT = TypeVar("TestT", bound=Callable[..., Any])

DOORS: Final = 12
"""Doors that share the inputs of `make fuzz`; an unequal share is a factor of `fuzzed`."""
FEW: Final = 20

_NUMBERS = st.sampled_from(
    [-1, 0, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, float("inf"), float("nan"), -0.0, 1e308]
)
_TEXTS = st.sampled_from(
    [
        *("", " ", "\0", "\ud800", "\u2028", "\x1b[2J", "[/]", "[red]", "{}", "%s", "../..", "a" * 70_000),
        *("9" * 40, "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00", "2026-01-01", "NaN", "-1"),
        *("https://[::1", "http://a:b@c:99999/", "sha256:", "é" * 300, "\r\n", "#1 [1/0] x"),
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | _NUMBERS | _TEXTS
VALUES: Final = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def fuzzed(share: float = 1.0) -> Callable[[TestT], TestT]:
    """Return the decorator that sets how many inputs a door gets: its share of INPUTS, or a few."""
    total = int(os.environ.get("FUZZ_INPUTS", "0"))
    return settings(
        max_examples=max(FEW, round(total * share / DOORS)),
        derandomize=not total,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        database=None,
    )


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return all containers within a JSON value, each with its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys:
            found += [(value, key), *_places(value[key])]
    return found


@st.composite
def json_variants(draw: st.DrawFn, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Draw a sample with up to three of its values replaced, removed or added."""
    value: dict[str, Any] = deepcopy(dict(draw(st.sampled_from(samples))))
    for _ in range(draw(st.integers(0, 3))):
        places = _places(value)
        if not places or draw(st.integers(0, 9)) == 0:
            value[draw(st.text(max_size=8))] = draw(VALUES)
            continue
        container, key = draw(st.sampled_from(places))
        if isinstance(container, dict) and draw(st.integers(0, 5)) == 0:
            del container[key]
        else:
            container[key] = draw(VALUES)
    return value


@st.composite
def byte_variants(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """Draw a sample with bytes changed, inserted, cut or repeated."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from("icdr")):
            case "i":
                data[at:at] = draw(st.binary(max_size=4))
            case "c":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "d":
                del data[at : at + draw(st.integers(1, 9))]
            case _:
                data[at:at] = data[: draw(st.integers(0, 40))]
    return bytes(data)


@st.composite
def bodies(draw: st.DrawFn, samples: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the encoding of a JSON variant, sometimes damaged."""
    encoded = json.dumps(draw(json_variants(samples))).encode()
    return draw(byte_variants([encoded])) if draw(st.integers(0, 4)) == 0 else encoded
