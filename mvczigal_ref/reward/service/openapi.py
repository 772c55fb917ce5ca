"""Description of a service in OpenAPI, for people, browsers and generators of clients."""

from dataclasses import asdict
from typing import Any, Final

import torch

from mvczigal_ref.language.chat import png_data_url
from mvczigal_ref.reward.service.terms import Limits, ScorerInfo
from mvczigal_ref.reward.service.wire import CONTENT_TYPE

__all__ = ["openapi"]

_ERROR: Final = {"type": "object", "properties": {"error": {"type": "string"}}}
_REFUSALS: Final = {
    "400": "The request is malformed.",
    "408": "The request came too slowly.",
    "409": "The scorer is of another kind.",
    "411": "Content-Length is absent.",
    "413": "A limit is exceeded.",
    "415": "The content type or the type of the pixels is unknown.",
    "421": "Host does not name this machine.",
    "422": "The scorer refuses the images or prompts.",
    "500": "The scorer failed.",
    "503": "Too many requests are waiting; try again later.",
}


def openapi(info: ScorerInfo, limits: Limits) -> dict[str, Any]:
    """Describe a service.

    Args:
        info: Info of the scorer.
        limits: Limits of the service.

    Returns:
        An OpenAPI 3.1 document, as JSON values.

    Examples:
        >>> info = ScorerInfo(name="brightness", version="1", kind="joint")
        >>> list(openapi(info, Limits())["paths"])
        ['/score', '/health', '/version', '/openapi.json']
    """
    identity = {
        "name": {"const": info.name},
        "version": {"const": info.version},
        "kind": {"const": info.kind},
    }
    limit_types = {
        name: {"type": "integer" if isinstance(value, int) else "number", "const": value}
        for name, value in asdict(limits).items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Scorer {info.name} ({info.kind})",
            "version": info.version,
            "description": "Scores of pictures. There is no password.",
        },
        "paths": {
            "/score": {
                "post": {
                    "operationId": "score",
                    "summary": "Score the views of some objects.",
                    "requestBody": {"required": True, "content": _bodies(info, limits)},
                    "responses": {
                        "200": _answer("Scores, one row per object.", _scores(info, identity)),
                        **{status: _answer(why, _ERROR) for status, why in _REFUSALS.items()},
                    },
                }
            },
            "/health": _get(
                "health", "Tell whether the service answers, and how often it has.",
                {"status": {"const": "ok"}, "answered": {"type": "integer", "minimum": 0}},
            ),
            "/version": _get(
                "version", "Name the scorer and the limits.",
                {**identity, "limits": {"type": "object", "properties": limit_types}},
            ),
            "/openapi.json": _get("openapi", "Give this document.", {}),
        },
    }  # fmt: skip


def _bodies(info: ScorerInfo, limits: Limits) -> dict[str, Any]:
    """Describe both formats of a request."""
    picture = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    grey = png_data_url(torch.full((3, 2, 2), 0.5))  # so that the example can be sent as it is
    views = {"type": "array", "items": picture, "minItems": 1, "maxItems": limits.views}
    prompt = {"type": "string", "maxLength": limits.prompt_chars}
    some = {"minItems": 1, "maxItems": limits.objects}
    return {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["prompts", "images"],
                "additionalProperties": False,
                "properties": {
                    "prompts": {
                        "description": "One prompt per object.",
                        "type": "array", "items": prompt, **some,
                    },
                    "images": {
                        "description": (
                            "The views of each object, as many of each, as PNG files of one size "
                            f"of at most {limits.image_size} px, 8 bits, without transparency."
                        ),
                        "type": "array", "items": views, **some,
                    },
                    "kind": {"const": info.kind},
                },
            },
            "example": {"prompts": ["a grey square"], "images": [[grey]]},
        },
        CONTENT_TYPE: {
            "schema": {
                "description": (
                    "Length of the head (four bytes, little-endian), the head (JSON: kind, "
                    "prompts, shape, dtype), and the pixels: little-endian float32 in [0, 1], or "
                    "uint8, of shape (objects, views, 3, height, width)."
                ),
            }
        },
    }  # fmt: skip


def _scores(info: ScorerInfo, identity: dict[str, Any]) -> dict[str, Any]:
    count = "one number per view" if info.kind == "per_view" else "a single number"
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    return {
        "type": "object",
        "required": ["name", "version", "kind", "dtype", "scores"],
        "properties": {
            **identity,
            "dtype": {"enum": ["float32", "float64"]},
            "scores": {"description": f"Rows of {count}.", "type": "array", "items": numbers},
        },
    }


def _get(name: str, summary: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    responses = {"200": _answer(summary, schema)}
    return {"get": {"operationId": name, "summary": summary, "responses": responses}}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
