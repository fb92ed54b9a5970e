"""Whether something can be sent to the hub, seen before hours are spent; why it was not taken."""

import json

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from dpo.core.refusal import Refusal, one_line
from dpo.recipe.hub_names import why_not

PATIENCE = 120  # seconds for an answer, or for a part to be taken: the client has no end of its own
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REFUSED = {
    401: f"the hub does not know the token: {LOG_IN}",
    403: "the token may not write there: take one that may, or another org/name",
    404: "there is no such user or organisation that the token may write to",
}


def check_can_send(name: str, what: str) -> None:
    """See, without asking the hub, that this process can send something to it.

    Args:
        what: a kind of repository, in words: model, data set.

    Raises:
        Refusal: `name` is no org/name, there is no token, or the hub is switched off.
    """
    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise Refusal(f"push: {name!r} is no name of a {what} on the hub: give org/name")
    if constants.HF_HUB_OFFLINE:
        raise Refusal("push: HF_HUB_OFFLINE switches the hub off: unset it, or push nothing")
    if not get_token():
        raise Refusal(f"push: there is no token of the hub: {LOG_IN}")


def api_for(name: str) -> HfApi:
    """A client of the hub that waits no longer than PATIENCE; a line says what it is asked for."""
    get_session().timeout = PATIENCE
    api = HfApi()
    print(f"Asking {api.endpoint} for {name}")
    return api


def why_not_sent(error: Exception) -> str:
    """Why the hub took something not, on one line. The token is no part of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"what {constants.ENDPOINT} answers is no JSON: is HF_ENDPOINT right?"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = one_line(error) if isinstance(error, ValueError) else why_not(error)
    return REFUSED.get(status) or said
