"""Client for OpenAI-compatible chat endpoints, which returns the assistant's text. Uses the standard library only."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request

from ldm.util import UserError

ATTEMPTS, PAUSE, TIMEOUT = 4, 2.0, 120.0  # seconds before the second attempt, doubled before each further one; seconds per attempt
LARGEST_ANSWER = 2**22  # bytes
SET_KEY = "give the right key in the environment (--api_key_env names its variable)"
ADVICE = {401: SET_KEY, 403: SET_KEY, 404: "check --base_url (it usually ends with /v1) and --model",
          429: "wait, then run the same command again"}  # by HTTP status


class ChatEndpoint:
    """Callable that sends requests to `<base_url>/chat/completions`; an example of `base_url` is http://localhost:8000/v1.

    `key` is the bearer token; None sends none. Servers may ignore `seed`. Raises UserError if the key holds characters that a key
    cannot have.
    """

    def __init__(self, base_url: str, model: str, key: str | None = None, *, seed: int = 0) -> None:
        self.url, self.model, self.seed = base_url.rstrip("/") + "/chat/completions", model, seed
        if key and not re.fullmatch(r"[!-~]+", key):
            raise UserError("the key in the environment has characters that no key has, such as spaces; set it again (--api_key_env)")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def __call__(self, request: str) -> str:
        """The assistant's answer to a request.

        Raises UserError if the server cannot be reached, refuses the request, or returns something other than a chat completion.
        """
        content = self._post({"model": self.model, "messages": [{"role": "user", "content": request}], "seed": self.seed})
        if len(content) > LARGEST_ANSWER:
            raise UserError(f"{self.url} answered more than {LARGEST_ANSWER} bytes, too many for a list of sentences; check --base_url")
        try:
            answer = json.loads(content)["choices"][0]["message"]["content"]
            if not isinstance(answer, str):
                raise TypeError(type(answer).__name__)
            return answer
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{self.url} answered something other than a chat completion ({type(error).__name__}: {error}); give the "
                            "--base_url of an OpenAI-compatible server, such as http://localhost:8000/v1") from None

    def _post(self, body: dict[str, object]) -> bytes:
        """The first LARGEST_ANSWER + 1 bytes of the server's response; a busy or silent server is asked again."""
        opener = urllib.request.build_opener(_NoRedirect)
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with opener.open(request, timeout=TIMEOUT) as response:
                    return response.read(LARGEST_ANSWER + 1)
            except urllib.error.HTTPError as error:
                if attempt < ATTEMPTS - 1 and (error.code == 429 or error.code >= 500):
                    continue
                said = " ".join(error.read(300).decode(errors="replace").split())
                flaw = f"refuses with status {error.code} ({said}); {ADVICE.get(error.code, 'check --base_url and --model')}"
                break
            except (OSError, http.client.HTTPException) as error:  # no connection, timeout, or not HTTP
                flaw = f"does not answer ({error}); check --base_url and whether the server runs"
        raise UserError(f"{self.url} {flaw}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turns redirects into errors: following one would send the key to another server."""

    def redirect_request(self, *_: object) -> None:
        return None
