"""The command `person-search serve`: what it refuses, and a server from start to end."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from person_search.errors import PersonSearchError
from person_search.search.serve import add_serve_arguments, run_serve
from person_search.search.serve.settings import allowed_hosts, is_loopback


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return parser.parse_args(["--store", "nowhere", *words])


def refusal(*words: str) -> str:
    with pytest.raises(PersonSearchError) as caught:
        run_serve(arguments(*words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_TOKEN", raising=False)
    short = tmp_path / "token"
    short.write_text("short\n")
    assert "a token has 16 at least" in refusal("--token-file", str(short))
    assert "cannot be read" in refusal("--token-file", str(tmp_path / "none"))
    assert "belong together" in refusal("--certificate", str(short))
    assert "there is no such file" in refusal("--certificate", str(short), "--certificate-key", str(tmp_path / "none"))
    assert "expected 0 to 65535" in refusal("--port", "70000")
    assert "expected megabytes" in refusal("--max-upload", "0")
    assert "no address of this machine" in refusal("--host", "no.such.name.invalid")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another port" in refusal("--port", str(taken.getsockname()[1]))
    assert "nowhere" in refusal("--port", "0")  # there is no such store
    monkeypatch.setenv("PERSON_SEARCH_TOKEN", "short")
    assert "$PERSON_SEARCH_TOKEN holds 5 characters" in refusal()


def test_which_addresses_are_this_machine() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "localhost", "::1", "127.8.9.1", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.1", "example.org", ""]))
    assert allowed_hosts("127.0.0.1") == {"127.0.0.1", "localhost", "::1"}
    assert {"192.0.2.1", "cams.example"} < allowed_hosts("192.0.2.1", ["Cams.example"])


def test_server_from_start_to_end(footage_folder: Path, tmp_path: Path) -> None:
    """Open to others: a token is made up, printed once, and asked for; over TLS where openssl makes a certificate."""
    errors, certificate, key = tmp_path / "errors", tmp_path / "certificate.pem", tmp_path / "key.pem"
    secure = shutil.which("openssl") is not None
    code = "import sys; from person_search.search.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--store", str(footage_folder / "yard.store"), "--host", "0.0.0.0", "--port", "0"]
    if secure:
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-out", str(certificate), "-keyout", str(key)]
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files]
        subprocess.run(make, check=True, capture_output=True)
        options += ["--certificate", str(certificate), "--certificate-key", str(key)]
    context = ssl.create_default_context(cafile=certificate) if secure else None
    scheme = "https" if secure else "http"
    environment = {name: value for name, value in os.environ.items() if name != "PERSON_SEARCH_TOKEN"}
    with errors.open("w") as stream:
        server = subprocess.Popen([sys.executable, "-c", code, "serve", *options], stderr=stream, env=environment)
        try:
            end, found = time.monotonic() + 200, None
            while not found and server.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
                found = re.search(rf"{scheme}://[^:]+:(\d+)/login#([\w-]{{32}})", errors.read_text())
            assert found, errors.read_text()
            address = f"{scheme}://localhost:{found[1]}/api/store"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(address, context=context)
            assert caught.value.code == 401
            asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {found[2]}"})
            with urllib.request.urlopen(asked, context=context) as answer:
                assert b'"yard.store"' in answer.read()
                assert answer.headers.get("server") is None
            signing = urllib.request.Request(
                address.replace("api/store", "login"),
                json.dumps({"token": found[2]}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(signing, context=context) as answer:
                assert ("; Secure" in answer.headers["set-cookie"]) == secure
        finally:
            server.send_signal(signal.SIGINT)
            status = server.wait(60)
    assert status in (0, 130), errors.read_text()
    assert "Traceback" not in errors.read_text()
