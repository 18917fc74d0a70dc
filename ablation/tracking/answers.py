"""Answers of a tracking server, checked before MLflow's client believes them."""

import json
import re
from typing import Any

import requests
from mlflow.utils import request_utils, rest_utils

from ablation.base.errors import StoreAway
from ablation.storage.outages import failed_answer

MLFLOW = "MLflow"  # who does not answer
STATUSES_WITH_JSON = (200, 400, 404)  # a proxy may give 401 and 403, without a word
_send = request_utils._get_http_response_with_retries


def check_answers(check: bool = True) -> bool:
    """Let MLflow's client raise `StoreAway` for every answer that says, or shows, that the server is not well.

    MLflow itself repeats some calls of its own accord, forgets the server's reason and its Retry-After, and takes an
    empty answer, which a proxy makes of one that it cuts, for an answer without data or for a refusal.

    Args:
        check: whether to do so in this process from now on.

    Returns:
        Whether it was done before.
    """
    before: bool = rest_utils._get_http_response_with_retries is _checked  # type: ignore[attr-defined]
    rest_utils._get_http_response_with_retries = _checked if check else _send  # type: ignore[attr-defined]
    return before


def _checked(
    method: str, url: str, max_retries: int, backoff_factor: int, backoff_jitter: float, retry_codes: Any, *_: Any,
    **kwargs: Any,
) -> requests.Response:  # fmt: skip
    """Send a request once; has the parameters of MLflow's function.

    Raises:
        StoreAway: the server reports a failure that passes, or its answer was cut.
    """
    kwargs["raise_on_status"] = False
    response: requests.Response = _send(method, url, 0, 0, 0.0, frozenset(), **kwargs)  # type: ignore[no-untyped-call]
    if (outage := failed_answer(response, MLFLOW)) is not None:
        raise outage
    is_json = "/api/" in url and method != "PUT" and not kwargs.get("stream", False)  # neither upload nor download
    if response.status_code in STATUSES_WITH_JSON and is_json and _is_cut(response):
        raise StoreAway(f"{MLFLOW} does not answer (its answer was cut)")
    return response


def _is_cut(response: requests.Response) -> bool:
    """Return whether an answer is empty, or the beginning of a JSON object; an object without data is '{}'."""
    text = response.text.strip()
    if not text:
        return True
    if not re.match(r"[{\[]", text):  # a page of another program
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return False
