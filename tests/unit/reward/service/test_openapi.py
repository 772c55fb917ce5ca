"""`reward.service.openapi`: the document says what the service does."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from mvczigal_ref.reward.service.openapi import openapi
from mvczigal_ref.reward.service.server import serving
from mvczigal_ref.reward.service.terms import Limits
from tests.unit.reward.service.doubles import JOINT, PER_VIEW, corner, lightest

LIMITS = Limits(objects=7, views=5)


def test_the_service_gives_its_document():
    """As it is made here; every path that it names is answered, and no other."""
    with serving(corner, info=PER_VIEW, limits=LIMITS) as server:
        with urlopen(f"{server.url}/openapi.json") as answer:
            document = json.load(answer)
        for path, methods in document["paths"].items():
            if "get" in methods:
                with urlopen(server.url + path) as answer:
                    content = json.load(answer)
                described = methods["get"]["responses"]["200"]["content"]["application/json"]
                properties = described["schema"]["properties"]
                assert path == "/openapi.json" or content.keys() == properties.keys()
        with pytest.raises(HTTPError) as caught:
            urlopen(f"{server.url}/other")

    assert document == openapi(PER_VIEW, LIMITS)
    with caught.value as answer:
        error = json.load(answer)["error"]
    assert all(path in error for path in document["paths"])


@pytest.mark.parametrize(("scorer", "info"), [(corner, PER_VIEW), (lightest, JOINT)])
def test_its_example_is_scored(scorer, info):
    """And the answer has the entries that are described."""
    post = openapi(info, LIMITS)["paths"]["/score"]["post"]
    example = post["requestBody"]["content"]["application/json"]["example"]
    with serving(scorer, info=info, limits=LIMITS) as server:
        request = Request(
            f"{server.url}/score", json.dumps(example).encode(),
            {"Content-Type": "application/json; charset=utf-8"},
        )  # fmt: skip
        with urlopen(request) as answer:
            content = json.load(answer)

    described = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert content.keys() == described["properties"].keys() == set(described["required"])
    grey = 128 / 255
    expected = grey + (len("a grey square") if info is PER_VIEW else 0)
    assert content["scores"] == [[pytest.approx(expected, rel=1e-6)]]


def test_limits_and_identity_are_the_services():
    """Of any scorer."""
    document = openapi(JOINT, LIMITS)
    body = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    properties = body["schema"]["properties"]

    assert properties["prompts"]["maxItems"] == properties["images"]["maxItems"] == 7
    assert properties["images"]["items"]["maxItems"] == 5
    assert properties["kind"] == {"const": "joint"}
    assert document["info"]["version"] == JOINT.version
    json.dumps(document, allow_nan=False)
