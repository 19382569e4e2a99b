"""Client for OpenAI-compatible chat endpoints, which returns the assistant's text. Uses the standard library only."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request

from ldm.util import UserError

ATTEMPTS = 4            # if the server is busy or does not answer
LARGEST_ANSWER = 2**22  # bytes


class ChatEndpoint:
    """Callable that sends requests to `<base_url>/chat/completions`.

    Args:
        base_url: base URL of the server, such as http://localhost:8000/v1.
        model: model name on the server.
        key: bearer token; None sends no token.
        seed: sampling seed, ignored by servers that do not support it.
        pause: seconds before the second attempt, doubled before each further attempt.
        timeout: seconds per attempt.

    Raises:
        UserError: the key holds characters that a key cannot have.
    """

    def __init__(self, base_url: str, model: str, key: str | None = None, *, seed: int = 0, pause: float = 2.0,
                 timeout: float = 120.0) -> None:
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.seed, self.pause, self.timeout = model, seed, pause, timeout
        if key and not re.fullmatch(r"[!-~]+", key):
            raise UserError("the key in the environment has characters that no key has, such as spaces; set it again (--api_key_env)")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, request: str) -> str:
        """The assistant's answer to a request.

        Raises:
            UserError: the server cannot be reached, refuses the request, or returns something other than a chat completion.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": request}], "seed": self.seed}
        for attempt in range(ATTEMPTS):
            try:
                content = self._post(json.dumps(body).encode())
                break
            except urllib.error.HTTPError as error:
                if attempt == ATTEMPTS - 1 or (error.code != 429 and error.code < 500):
                    raise UserError(self._refusal(error)) from None
            except (OSError, http.client.HTTPException) as error:  # no connection, timeout, or not HTTP
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"{self.url} does not answer ({error}); check --base_url and whether the server runs") from None
            time.sleep(self.pause * 2**attempt)
        try:
            answer = json.loads(content)["choices"][0]["message"]["content"]
            if not isinstance(answer, str):
                raise TypeError(type(answer).__name__)
            return answer
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{self.url} answered something other than a chat completion ({type(error).__name__}: {error}); give the "
                            "--base_url of an OpenAI-compatible server, such as http://localhost:8000/v1") from None

    def _post(self, body: bytes) -> bytes:
        with self._opener.open(urllib.request.Request(self.url, body, self._headers), timeout=self.timeout) as response:
            content = response.read(LARGEST_ANSWER + 1)
        if len(content) > LARGEST_ANSWER:
            raise UserError(f"{self.url} answered more than {LARGEST_ANSWER} bytes, too many for a list of sentences; check --base_url")
        return content

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        said = " ".join(error.read(300).decode(errors="replace").split())
        advice = {401: "give the right key in the environment (--api_key_env names its variable)",
                  403: "give the right key in the environment (--api_key_env names its variable)",
                  404: "check --base_url (it usually ends with /v1) and --model", 429: "wait, then run the same command again"}
        return f"{self.url} refuses with status {error.code} ({said}); {advice.get(error.code, 'check --base_url and --model')}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turns redirects into errors: following one would send the key to another server."""

    def redirect_request(self, *_: object) -> None:
        return None
