"""Drives a running deployment with the `openai` client from PyPI, unchanged, and checks every answer.

    python3 openai_client.py BASE_URL MODEL [--api-key KEY]      (BASE_URL as in http://127.0.0.1:8000)

One check a function, in the order in which a user meets the feature. Exit code: 0 all passed, 1 one or more failed,
77 the client could not be installed. Needs a model that samples: with the modeled engine the seed check cannot hold.
"""

import argparse
import concurrent.futures
import inspect
import json
import sys
import time
import traceback
import urllib.request

from client_env import enter

enter("openai==3.54.0")

import openai  # noqa: E402  (only importable inside the environment)

MESSAGES = [{"role": "user", "content": "Write one sentence about parsers."}]
FIXED_LENGTH = {"ignore_eos": True}


class Deployment:
    """The server under test and how to reach it."""

    def __init__(self, base_url: str, model: str, api_key: str):
        self.base_url, self.model, self.api_key = base_url.rstrip("/"), model, api_key
        self.client = self.connect(api_key)

    def connect(self, api_key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def chat(self, **more):
        """A greedy chat request of exactly 16 tokens unless `more` says otherwise."""
        settings = {"model": self.model, "messages": MESSAGES, "temperature": 0, "max_tokens": 16, "extra_body": FIXED_LENGTH}
        return self.client.chat.completions.create(**{**settings, **more})

    def chat_text(self, **more) -> str:
        return self.chat(**more).choices[0].message.content

    def metrics(self) -> dict:
        """Every series of /metrics without labels folded together by sum."""
        request = urllib.request.Request(f"{self.base_url}/metrics", headers={"Authorization": f"Bearer {self.api_key}"})
        text = urllib.request.urlopen(request, timeout=10).read().decode()
        sums = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                name = series.split("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums


def refused(error_type, status: int, call, *, mentions: str = "") -> None:
    """`call` must fail with an OpenAI error body of the given type and HTTP status, whose message holds `mentions`."""
    try:
        answer = call()
    except error_type as error:
        assert error.status_code == status, f"status {error.status_code}, expected {status}: {error}"
        assert isinstance(error.body, dict) and error.body.get("message"), f"no OpenAI error body: {error.body!r}"
        assert mentions in error.body["message"], f"{mentions!r} is not in {error.body['message']!r}"
        return
    raise AssertionError(f"expected HTTP {status}, got {answer!r}")


def wait_until(what: str, condition, deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.02)


def check_model_is_listed(d: Deployment) -> None:
    models = [m.id for m in d.client.models.list()]
    assert d.model in models, models
    assert d.client.models.retrieve(d.model).id == d.model
    refused(openai.NotFoundError, 404, lambda: d.client.models.retrieve("no-such-model"), mentions="no-such-model")


def check_chat_answers_with_exact_usage(d: Deployment) -> None:
    answer = d.chat()
    assert answer.object == "chat.completion" and answer.model == d.model
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16, answer.usage
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def check_streamed_text_equals_whole_text(d: Deployment) -> None:
    whole = d.chat_text(max_tokens=48)
    chunks = list(d.chat(max_tokens=48, stream=True))
    assert all(c.object == "chat.completion.chunk" and c.id == chunks[0].id for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == whole, f"streamed {streamed!r}\nwhole    {whole!r}"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert reasons == ["length"], reasons


def check_stream_ends_with_usage_on_request_only(d: Deployment) -> None:
    chunks = list(d.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16, chunks[-1]
    assert all(c.usage is None for c in chunks[:-1])
    assert all(c.usage is None for c in d.chat(stream=True))


def check_text_completions_whole_and_streamed(d: Deployment) -> None:
    settings = {"model": d.model, "prompt": "A parser is", "temperature": 0, "max_tokens": 12, "extra_body": FIXED_LENGTH}
    whole = d.client.completions.create(**settings)
    assert whole.object == "text_completion" and whole.usage.completion_tokens == 12
    streamed = "".join(c.choices[0].text for c in d.client.completions.create(stream=True, **settings) if c.choices)
    assert streamed == whole.choices[0].text


def check_both_names_of_the_length_limit(d: Deployment) -> None:
    assert d.chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=5).usage.completion_tokens == 5
    assert d.chat(max_tokens=1).usage.completion_tokens == 1


def check_ignore_eos_is_read_at_both_places(d: Deployment) -> None:
    for body in ({"ignore_eos": True, "min_tokens": 20}, {"nvext": {"ignore_eos": True}}):
        assert d.chat(max_tokens=20, extra_body=body).usage.completion_tokens == 20, body


def check_stop_string_ends_the_text_before_it(d: Deployment) -> None:
    text = d.chat_text(max_tokens=40)
    stop = text[10:13]
    for answer in (d.chat(max_tokens=40, stop=[stop]), d.chat(max_tokens=40, stop=stop)):
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == text[: text.index(stop)]
    streamed = "".join(c.choices[0].delta.content or "" for c in d.chat(max_tokens=40, stop=[stop], stream=True) if c.choices)
    assert streamed == text[: text.index(stop)], "a stream must not send the start of a stop string"


def check_seed_repeats_and_varies(d: Deployment) -> None:
    draw = {"temperature": 1.0, "max_tokens": 32}
    first = [d.chat_text(seed=seed, **draw) for seed in (1, 2, 3)]
    assert first == [d.chat_text(seed=seed, **draw) for seed in (1, 2, 3)], "the same seed gave another text"
    assert len(set(first)) > 1, "three seeds gave one text"


def check_top_k_of_one_is_greedy(d: Deployment) -> None:
    assert d.chat_text(temperature=1.0, extra_body={**FIXED_LENGTH, "top_k": 1}) == d.chat_text()


def check_conversations_and_non_ascii_text(d: Deployment) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "größer als 你好 🦀?"}]
    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    assert d.chat(messages=messages).usage.prompt_tokens > d.chat().usage.prompt_tokens - 40


def check_errors_have_the_right_type_and_message(d: Deployment) -> None:
    refused(openai.NotFoundError, 404, lambda: d.chat(model="no-such-model"), mentions="no-such-model")
    refused(openai.BadRequestError, 400, lambda: d.chat(max_tokens=-1), mentions="max_tokens")
    refused(openai.BadRequestError, 400, lambda: d.chat(max_tokens=0), mentions="max_tokens")
    refused(openai.BadRequestError, 400, lambda: d.chat(n=2), mentions="n")
    refused(openai.BadRequestError, 400, lambda: d.chat(messages=[]), mentions="messages")
    refused(openai.BadRequestError, 400, lambda: d.chat(temperature=-3), mentions="temperature")
    refused(openai.BadRequestError, 400, lambda: d.chat(top_p=7), mentions="top_p")
    refused(openai.BadRequestError, 400, lambda: d.chat(messages=[{"role": "user", "content": "x" * 300_000}]))


def check_errors_of_a_stream_are_ordinary_responses(d: Deployment) -> None:
    refused(openai.NotFoundError, 404, lambda: d.chat(model="no-such-model", stream=True))
    refused(openai.BadRequestError, 400, lambda: d.chat(max_tokens=-1, stream=True))


def check_wrong_api_key_is_refused(d: Deployment) -> None:
    if d.api_key == "none":
        return
    stranger = d.connect("wrong-key")
    refused(openai.AuthenticationError, 401, lambda: stranger.chat.completions.create(model=d.model, messages=MESSAGES))


def check_parallel_requests_do_not_mix(d: Deployment) -> None:
    prompts = [[{"role": "user", "content": f"{i} " * (i + 1)}] for i in range(12)]
    alone = [d.chat_text(messages=p) for p in prompts]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda p: d.chat_text(messages=p), prompts))
    assert together == alone


def check_a_client_that_leaves_is_forgotten(d: Deployment) -> None:
    """Six streams are dropped after their first chunks; requests and KV blocks must go back to what they were."""
    watched = ["tandem_requests_in_flight", "tandem_kv_blocks_used"]
    watched = [name for name in watched if name in d.metrics()]
    assert watched, "/metrics has neither requests in flight nor KV blocks"

    def idle() -> bool:
        now = d.metrics()
        return all(now[name] == 0 for name in watched)

    wait_until("an idle deployment before the test", idle)
    for _ in range(6):
        stream = d.chat(max_tokens=200, stream=True)
        chunks = iter(stream)
        next(chunks), next(chunks)
        stream.close()
    wait_until("release of everything that the lost clients held", idle)
    check_chat_answers_with_exact_usage(d)


def checks() -> list:
    """Every `check_…` of this file in its order."""
    found = [f for name, f in globals().items() if name.startswith("check_")]
    return sorted(found, key=lambda f: inspect.getsourcelines(f)[1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()
    deployment = Deployment(args.base_url, args.model, args.api_key)
    failed = []
    for check in checks():
        start = time.monotonic()
        try:
            check(deployment)
            result = "ok"
        except Exception:  # noqa: BLE001  (a check may fail in any way; all others still run)
            failed.append(check.__name__)
            result = "FAILED\n" + traceback.format_exc()
        print(f"{check.__name__}: {result} ({time.monotonic() - start:.2f} s)", flush=True)
    print(json.dumps({"client": f"openai {openai.__version__}", "checks": len(checks()), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
