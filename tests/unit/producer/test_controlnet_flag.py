"""`--controlnet` reaches the worker as it was named."""

from __future__ import annotations

import pytest

from producer.worker_flags import check_worker_flags
from storage.errors import BadInputError
from storage.models import parse_model

FLAGS = {"devices": "cpu", "dtype": "auto", "lanes": "auto", "mode": "exact"}


def test_a_controlnet_is_named_as_a_model_is() -> None:
    """With name and revision; what is neither folder nor repo is refused before a worker starts."""
    demo = parse_model("demo=./demo")
    options = check_worker_flags(demo, **FLAGS, controlnet="canny=owner/repo@abc")
    assert options.controlnet == "canny=owner/repo@abc"
    assert check_worker_flags(demo, **FLAGS).controlnet is None
    with pytest.raises(BadInputError, match="neither a folder nor a repo id"):
        check_worker_flags(demo, **FLAGS, controlnet="canny=a/b/c/d")
