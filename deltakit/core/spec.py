"""Methods as people type them: ``lora[rank=16]``, ``prefix[length=10]+parallel[bottleneck=64]``.

Grammar::

    spec   = term ("+" term)*
    term   = [provider ":"] name [ "[" key "=" value ("," key "=" value)* "]" ]
    value  = number | true | false | none | word ("/" word)* | spec

Two plus signs in a row are part of a name (``compacter++``). A value with slashes is a tuple:
``lora[targets=q/v]``. A value for a field that holds a method is a spec of its own:
``fusion[member=houlsby[reduction=8]]``. A name with a provider is a method of another library, with
the settings that it has there: ``peft:vera[r=256]``.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from deltakit.core.method import METHODS, Entry, Method, Sum
from deltakit.core.provider import ExternalMethod, provider_entry
from deltakit.errors import InvalidConfig

_PLUS_PLUS = "\0"
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


def parse_method(spec: str) -> Method:
    """The method that `spec` describes.

    Raises:
        UnknownName: a method or provider is unknown.
        MissingExtra: the provider's library is not installed.
        InvalidConfig: a malformed spec, a key that the method does not have, a value that it does
            not take.
    """
    terms = [_parse_term(term.strip(), spec) for term in _split_sum(spec)]
    return terms[0] if len(terms) == 1 else Sum(parts=tuple(terms))


def _split_sum(spec: str) -> list[str]:
    """The terms of a sum. Two plus signs in a row are part of a name: ``compacter+++lora``."""
    terms = split_outside_brackets(spec.replace("++", _PLUS_PLUS), "+")
    return [term.replace(_PLUS_PLUS, "++") for term in terms]


def format_method(method: Method) -> str:
    """A spec of the method, with what differs from the defaults; the inverse of `parse_method`."""
    if isinstance(method, Sum):
        return "+".join(format_method(part) for part in method.parts)
    if isinstance(method, ExternalMethod):
        return _bracketed(f"{method.provider}:{method.name}", method.settings)
    names = [name for name in METHODS if METHODS.get(name).cls is type(method)]
    if not names:
        return repr(method)
    return min((_described(method, name) for name in names), key=len)


def _described(method: Method, name: str) -> str:
    usual = METHODS.get(name).build()
    pairs = [(f.name, getattr(method, f.name)) for f in dataclasses.fields(method)]
    return _bracketed(name, ((k, v) for k, v in pairs if v != getattr(usual, k)))


def _bracketed(name: str, settings: Iterable[tuple[str, Any]]) -> str:
    written = ",".join(f"{key}={_written(value)}" for key, value in settings)
    return f"{name}[{written}]" if written else name


def _written(value: Any) -> str:
    match value:
        case Method():
            return format_method(value)
        case tuple():
            return "/".join(map(_written, value))
        case None | bool():
            return str(value).lower()
        case _:
            return str(value)


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Splits `text` at each `separator` that is not inside square brackets.

    Raises:
        InvalidConfig: the brackets do not match.
    """
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth < 0:
            break
        if char == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth != 0:
        raise InvalidConfig(f"the brackets in {text!r} do not match. Write name[key=value,...].")
    return parts


def _parse_term(term: str, spec: str) -> Method:
    name, bracket, rest = term.partition("[")
    name, rest = name.strip(), rest.strip()
    if not name or (bracket and not rest.endswith("]")):
        raise InvalidConfig(
            f"cannot read the method {spec!r}. Write name[key=value,...], joined by '+'."
        )
    entry = _entry(name)
    fields = {}
    for pair in split_outside_brackets(rest[:-1], ",") if rest[:-1].strip() else []:
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not (key and equals and value):
            raise InvalidConfig(f"cannot read {pair!r} in {spec!r}. Write key=value.")
        if key in fields:
            raise InvalidConfig(f"{spec!r} sets {key!r} twice. Set it once.")
        fields[key] = _parse_value(value, key, entry)
    return entry.build(**fields)


def _entry(name: str) -> Entry:
    provider, colon, inner = (part.strip() for part in name.partition(":"))
    return provider_entry(provider, inner) if colon else METHODS.get(name)


def _parse_value(value: str, key: str, entry: Entry) -> Any:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(entry.cls)}
    if "Method" in kinds.get(key, ""):
        return parse_method(value)
    if "/" in value:
        return tuple(_parse_scalar(item) for item in value.split("/"))
    return _parse_scalar(value)


def _parse_scalar(value: str) -> bool | int | float | str | None:
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
