"""Models by hub names: fetched, found in the cache, or refused in one line within seconds."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from grace.errors import InputError
from grace.models import check_model_directory, load_model, load_processor, model_directory


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that makes an address the hub's; its cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def at(address):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)

    return at


@contextmanager
def answering(status, headers):
    """A hub that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_know(hub):
    with answering(404, {"X-Error-Code": "RepoNotFound"}) as address:
        hub(address)
        for load in (load_model, load_processor, check_model_directory):
            with pytest.raises(InputError, match=r"'no-such/model': .*no such model on the hub"):
                load("no-such/model")


@pytest.mark.slow
def test_a_model_whose_licence_is_not_accepted(hub):
    with answering(403, {"X-Error-Code": "GatedRepo"}) as address:
        hub(address)
        with pytest.raises(InputError, match=r"'some/gated': its licence has to be accepted"):
            check_model_directory("some/gated")


def test_a_hub_that_is_not_there_or_says_nothing_is_asked_once(hub, monkeypatch):
    monkeypatch.setattr("grace.models.hub.TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub(address)
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(InputError, match=rf"'some/model': {address} does not answer"):
                load_processor("some/model")
            assert time.monotonic() - started < 5
            silent.close()  # the second time nothing listens


def test_what_the_hub_s_cache_has_needs_no_hub(hub, small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        check_model_directory("some/model")
    repository = tmp_path / "cache" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    small.model().save_pretrained(snapshot)
    small.processor.save_pretrained(snapshot)
    assert model_directory("some/model") == snapshot
    assert load_model("some/model").config.model_type == small.name
    assert type(load_processor("some/model")) is type(small.processor)
