"""The API keeps to its own description, whatever is sent: no server error, no undocumented answer.

PROMPTMILL_SCHEMA_CASES says how many requests are made up for each operation and mode; 150 make over
2,000 in all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from http import HTTPStatus

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CASES = int(os.environ.get("PROMPTMILL_SCHEMA_CASES", "25"))  # of each operation and mode
HOST = {"host": "127.0.0.1"}
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture
def description(app: FastAPI) -> schemathesis.BaseSchema:
    """The description that the site itself gives, but for what follows progress without end."""
    found = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=HOST)
    return found.exclude(path_regex="/events$")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_as_described(description: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    """Statuses, content types and schemas, for sound and for broken requests."""
    cases = 0
    for found in description.get_all_operations():

        @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=found.ok().as_strategy(generation_mode=mode))
        def check(case: Case) -> None:
            nonlocal cases
            cases += 1
            if case.path.endswith("/generations") and isinstance(case.body, dict):
                case.body["wait"] = 0.01  # nobody renders
            answer = case.call(headers=HOST)
            # Pictures that are not there in time are no fault of the server, though HTTP counts it so.
            late = answer.status_code == HTTPStatus.GATEWAY_TIMEOUT and case.path.endswith("/generations")
            case.validate_response(
                answer, checks=[one for one in CHECKS if not (late and one is not_a_server_error)]
            )

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that says nothing
            check()
    sys.stderr.write(f"{cases} cases, {mode.value}\n")
    assert cases > CASES
