# SPDX-License-Identifier: Apache-2.0
"""Every kind of response, to every request: which error it becomes, and whether it leaves a start open."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest
from helpers.leaks import person_in
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api import errors
from airflow_provider_voicegenie.api.endpoints import campaign, history, other, start, upload
from airflow_provider_voicegenie.api.responses import Redactor, Response, decode
from airflow_provider_voicegenie.rules.outcomes import Condition

KEY = "k3y/with+odd=chars"
REDACTOR = Redactor(KEY)


def response(status=200, document=None, *, body=None, **headers):
    content = json.dumps(document).encode() if body is None else body
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def refusal(code=None, message="no", **more):
    return {"success": False, "message": message, **({"error": code} if code is not None else {}), **more}


GOOD_START = {"success": True, "data": {"campaign_id": "c1", "status": "running", "started_at": "2024-01-16T10:30:00Z"}}


def read_start(given):
    return decode(start("c1"), given, redactor=REDACTOR, now=0)


def error_of(given, request=start):
    with pytest.raises(errors.VoiceGenieError) as caught:
        decode(request("c1"), given, redactor=REDACTOR, now=0)
    return caught.value


def test_a_good_response():
    started = read_start(response(200, GOOD_START))
    assert started.campaign_id == "c1"
    assert started.status.is_running


@pytest.mark.parametrize(
    ("given", "kind", "may_have_taken_effect"),
    [
        (response(400, refusal("CAMPAIGN_ALREADY_RUNNING")), "CAMPAIGN_ALREADY_RUNNING", False),
        (response(400, refusal({"code": "CAMPAIGN_ALREADY_RUNNING"})), "CAMPAIGN_ALREADY_RUNNING", False),
        (response(409, refusal("CAMPAIGN_ALREADY_RUNNING")), "CAMPAIGN_ALREADY_RUNNING", False),
        (response(400, refusal("CAMPAIGN_NOT_RUNNING")), "CAMPAIGN_NOT_RUNNING", False),
        (response(400, refusal()), "REFUSED", False),
        (response(400, refusal("BRAND_NEW")), "REFUSED", False),
        (response(404, refusal("NOT_FOUND")), "NOT_FOUND", False),
        (response(404, refusal("CAMPAIGN_NOT_FOUND")), "NOT_FOUND", False),
        (response(404, refusal()), "NOT_FOUND", False),
        (response(404, refusal("NO_SUCH_ENDPOINT")), "REFUSED", False),
        (response(404, body=b"<html>Not Found</html>"), "REFUSED", False),
        (response(404, {"detail": "Not Found"}), "REFUSED", False),
        (response(422, refusal("INVALID_CAMPAIGN_STATE")), "INVALID_CAMPAIGN_STATE", False),
        (response(422, refusal()), "INVALID_CAMPAIGN_STATE", False),
        (response(401, refusal("UNAUTHORIZED")), "UNAUTHORIZED", False),
        (response(401, refusal()), "UNAUTHORIZED", False),
        (response(401, body=b""), "UNAUTHORIZED", False),
        (response(403, refusal()), "FORBIDDEN", False),
        (response(418, refusal()), "REFUSED", False),
        (response(429, refusal("RATE_LIMIT_EXCEEDED")), "RATE_LIMIT_EXCEEDED", False),
        (response(429, body=b"slow down"), "RATE_LIMIT_EXCEEDED", False),
        (response(408, body=b""), "INTERNAL_SERVER_ERROR", True),
        (response(425, body=b""), "INTERNAL_SERVER_ERROR", False),
        (response(500, refusal("INTERNAL_SERVER_ERROR")), "INTERNAL_SERVER_ERROR", True),
        (response(500, refusal("NOT_FOUND")), "INTERNAL_SERVER_ERROR", True),
        (response(502, body=b"<html>Bad Gateway</html>"), "INTERNAL_SERVER_ERROR", True),
        (response(599, body=b""), "INTERNAL_SERVER_ERROR", True),
        (response(302, body=b"", location="https://elsewhere"), "REDIRECTED", True),
        (response(304, body=b""), "REDIRECTED", True),
        (response(200, refusal("CAMPAIGN_ALREADY_RUNNING")), "CAMPAIGN_ALREADY_RUNNING", False),
        (response(200, refusal("CAMPAIGN_NOT_RUNNING")), "CAMPAIGN_NOT_RUNNING", False),
        (response(200, refusal("INVALID_CAMPAIGN_STATE")), "INVALID_CAMPAIGN_STATE", False),
        # What the service does not document for a refusal does not say that nothing was done.
        (response(200, refusal("INTERNAL_SERVER_ERROR")), "INTERNAL_SERVER_ERROR", True),
        (response(200, refusal("BRAND_NEW")), "REFUSED", True),
        (response(200, refusal()), "REFUSED", True),
        (response(200, refusal("BRAND_NEW", None)), "REFUSED", True),
        (response(200, refusal(None, None)), "INVALID_RESPONSE", True),
        (response(200, {"message": "no"}), "INVALID_RESPONSE", True),
        (response(400, {**GOOD_START, "error": "X"}), "REFUSED", True),
        (response(200, body=b""), "INVALID_RESPONSE", True),
        (response(200, body=b"<html>"), "INVALID_RESPONSE", True),
        (response(200, body=b"[1]"), "INVALID_RESPONSE", True),
        (response(200, body=b"[" * 200_000), "INVALID_RESPONSE", True),
        (response(200, body=b'{"success": true, "data"'), "INVALID_RESPONSE", True),
        (response(200, {"success": "true", "data": {}}), "INVALID_RESPONSE", True),
        (response(200, {"success": True}), "INVALID_RESPONSE", True),
        (response(200, {"success": True, "data": {"campaign_id": "c1"}}), "INVALID_RESPONSE", True),
        (
            response(200, {"success": True, "data": {"campaign_id": "other", "status": "running"}}),
            "INVALID_RESPONSE",
            True,
        ),
        (response(200, {"success": True, "data": {"campaign_id": "c1", "status": "paused"}}), "INVALID_RESPONSE", True),
        (response(200, body=b"not gzip", content_encoding="gzip"), "INVALID_RESPONSE", True),
        (response(200, {**GOOD_START, "success": "false"}), "INVALID_RESPONSE", True),
        (response(200, {**GOOD_START, "success": 1}), "INVALID_RESPONSE", True),
        (response(200, body=b"{}", content_encoding="br"), "INVALID_RESPONSE", True),
    ],
)
def test_what_a_response_to_a_start_becomes(given, kind, may_have_taken_effect):
    error = error_of(given)
    # What goes on behind it is another sentence.
    assert str(error).endswith(".")
    assert (error.kind, error.may_have_taken_effect) == (kind, may_have_taken_effect)
    assert Condition(error.kind)
    assert error_of(given, campaign).may_have_taken_effect is False


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_does_not_matter(encoding):
    body = json.dumps(GOOD_START).encode(encoding)
    assert read_start(response(200, body=body)).campaign_id == "c1"
    assert error_of(response(400, body=json.dumps(refusal("CAMPAIGN_ALREADY_RUNNING")).encode(encoding))).status == 400


@pytest.mark.parametrize("code", ["NO_CREDITS", None])
def test_what_the_service_refuses_with_200_is_said_in_its_words(code):
    error = error_of(response(200, refusal(code, "No credits left.")))
    assert f"No credits left ({'200 NO_CREDITS' if code else '200'})." in str(error)
    assert not error.temporary
    # The host is not the matter.
    assert not error.remedy


def test_what_is_compressed_is_not_unpacked():
    body = gzip.compress(json.dumps(GOOD_START).encode())
    assert "content encoding that was not asked for" in str(error_of(response(200, body=body, content_encoding="gzip")))
    # What was asked for may be named.
    assert read_start(response(200, GOOD_START, content_encoding="identity")).campaign_id == "c1"


@pytest.mark.parametrize("data", [{"a": 1}, [1, 2], "text", 5, None])
def test_a_request_that_is_not_named_here_gives_data_as_it_came(data):
    request = other("get", "/quota")
    assert str(request) == "VoiceGenie GET /quota"
    assert decode(request, response(200, {"success": True, "data": data}), redactor=REDACTOR, now=0) == data
    with pytest.raises(errors.InvalidResponseError, match="has no `data`"):
        decode(request, response(200, {"success": True}), redactor=REDACTOR, now=0)


def test_an_invalid_state_says_what_is_missing():
    error = error_of(response(422, refusal("INVALID_CAMPAIGN_STATE", details={"missing": ["script_id", "contacts"]})))
    assert "script_id, contacts" in str(error)
    assert error.details == {"missing": ["script_id", "contacts"]}
    assert (error.status, error.code) == (422, "INVALID_CAMPAIGN_STATE")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(refusal("X", KEY)),
        json.dumps(refusal(KEY)),
        json.dumps(refusal("X", details={KEY: {"deep": [KEY]}})),
        json.dumps(refusal("X", details={"missing": [KEY]})),
        # An escaped slash and an escaped letter say the same text.
        json.dumps(refusal("X", KEY)).replace("/", "\\/").replace("k3y", "\\u006b3y"),
        f"<html>x-api-key: {KEY}</html>",
        "<html>k3y%2Fwith%2Bodd%3Dchars</html>",
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_no_echoed_key_gets_into_an_error(status, body):
    with pytest.raises(errors.VoiceGenieError) as caught:
        read_start(response(status, body=body.encode(), location=KEY))
    error = caught.value
    # What a traceback with local variables would show.
    for frame in caught.traceback[2:]:
        assert "k3y" not in repr(frame.frame.f_locals)
    shown = f"{error} {error!r} {error.code} {error.details} {vars(error)}"
    assert "k3y" not in shown
    assert "k3y" not in str(pickle.loads(pickle.dumps(error)).__dict__)


def test_an_error_survives_pickling():
    error = error_of(response(429, refusal(), retry_after="7"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.retry_after, copy.status) == (type(error), str(error), 7, 429)


def test_an_excerpt_is_short_and_on_one_line():
    text = str(error_of(response(200, body=b"<html>\r\n\x1b[31m" + b"x" * 5000)))
    assert len(text) < 400
    assert text.isprintable()


@given(st.integers(200, 599), st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate"]))
def test_any_bytes_are_an_error_of_the_family(status, body, encoding):
    assert error_of(Response(status, {"content-encoding": encoding}, body)).kind in Condition.__members__


# Responses about people.

PERSON = {"phone_number": "+49 1519 0817263", "name": "Xaverine O'Hara-Quast", "custom_fields": {"pet": ["Quasti"]}}


@pytest.mark.parametrize("request_", [upload("c", [PERSON]), history("c", limit=1, offset=0)])
@pytest.mark.parametrize(
    "body",
    [
        json.dumps([PERSON]),
        json.dumps({"success": True, "data": [PERSON]}),
        json.dumps({"success": False, "message": "+49 1519 0817263 is wrong", "error": "BAD_REQUEST"}),
        json.dumps({"success": False, "details": {"missing": ["+49 1519 0817263"]}, "error": "INVALID_CAMPAIGN_STATE"}),
        json.dumps({"data": PERSON}),
        json.dumps(PERSON)[:-3],
    ],
)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_error_about_people_names_one(request_, body, status):
    with pytest.raises(errors.VoiceGenieError) as caught:
        decode(request_, Response(status, {}, body.encode()), redactor=Redactor("key"), now=0.0)
    shown = f"{caught.value!r} {caught.value.details}"
    assert "1519" not in shown
    assert "averine" not in shown.casefold()


@pytest.mark.parametrize("status", [200, 400, 409, 500])
@pytest.mark.parametrize("code", ["XAVERINE_QUASTENFLOSSER", "+4915190817263", "xaverine@quastenflosser.example"])
def test_no_code_about_people_names_one(status, code):
    given = response(status, {"success": False, "message": "No", "error": code})
    about_people = error_of(given, request=lambda _: upload("c1", [PERSON]))
    assert about_people.code is None
    assert person_in(f"{about_people} {vars(about_people)}") is None
    # Of others, a code is what it is.
    assert error_of(given).code == code


# What no guard knows of.

DEEP = 520


def nested(depth, inside='"\\\\"'):
    return "[" * depth + inside + "]" * depth


@pytest.mark.parametrize("depth", [100, DEEP, 900, 5000, 100_000])
@pytest.mark.parametrize("inside", ["1", '"\\\\"'])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, '{"success": true, "data": {"campaign_id": "c1", "status": "running", "more": %s}}'),
        (200, '{"success": false, "message": "no", "details": {"missing": [%s]}}'),
        (422, '{"success": false, "message": "no", "details": {"missing": [%s]}}'),
        (422, '{"success": false, "message": "no", "details": {"missing": %s}}'),
        (500, "%s"),
    ],
)
def test_a_response_of_any_depth_is_read_or_an_error_of_the_family(status, body, inside, depth):
    given = response(status, body=(body % nested(depth, inside)).encode())
    found = None
    try:
        assert read_start(given).campaign_id == "c1"
    except errors.VoiceGenieError as error:
        found = error
    assert found is None or (found.kind in Condition.__members__ and found.__context__ is None)


def test_a_response_whose_reading_fails_in_any_way_may_have_taken_effect(monkeypatch):
    monkeypatch.setattr("airflow_provider_voicegenie.api.responses._read_document", lambda *_, **__: 1 / 0)
    error = error_of(response(200, GOOD_START))
    assert (error.kind, error.may_have_taken_effect) == ("INVALID_RESPONSE", True)
    assert "ZeroDivisionError" in str(error)
