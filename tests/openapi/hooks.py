"""Leads schemathesis to what is there, where random ids would only ever meet a 404."""

import itertools
import os

import schemathesis
from schemathesis import GenerationMode

CONTAINER = os.environ["LIGHTD_TEST_CONTAINER"]
VOLUME = os.environ["LIGHTD_TEST_VOLUME"]
IMAGE = os.environ["LIGHTD_TEST_IMAGE"]
# Docker containers that creations may come to.
CREATIONS_MAX = 8

calls = itertools.count()
creations = itertools.count()


@schemathesis.serializer("application/offset+octet-stream")
def piece(context, value):
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return {"data": data}


@schemathesis.hook
def before_call(context, case, kwargs):
    turn = next(calls)
    path = case.operation.path
    # One key for many requests only ever meets a 422. Requests that are wrong stay as wrong as they are.
    is_good = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
    if is_good and case.headers and turn % 8:
        case.headers.pop("Idempotency-Key", None)
    # Nobody has the time to wait for what need not come.
    if is_good and case.query and "wait" in case.query:
        case.query["wait"] = "1s"
    if case.path_parameters and case.operation.method.lower() == "delete":
        # Identifiers of earlier answers are tried as well; the others need these two.
        if path == "/containers/{id}" and case.path_parameters.get("id") == CONTAINER:
            case.path_parameters["id"] = "server-001"
        elif path == "/volumes/{id}" and case.path_parameters.get("id") == VOLUME:
            case.path_parameters["id"] = "0190c6a0-0000-7000-8000-000000000000"
    elif turn % 2 and case.path_parameters and (is_good or case.operation.method.lower() != "get"):
        # Of a wrong GET the address may be what is wrong.
        if path.startswith("/containers/{id}"):
            case.path_parameters["id"] = CONTAINER
        elif path.startswith("/volumes/{id}"):
            case.path_parameters["id"] = VOLUME
    if path == "/containers" and isinstance(case.body, dict) and "volume_id" in case.body:
        if next(creations) < CREATIONS_MAX:
            case.body["volume_id"] = VOLUME
            case.body["image"] = IMAGE
            if "internal_id" in case.body:
                case.body["internal_id"] = f"{CONTAINER}-{turn}"
