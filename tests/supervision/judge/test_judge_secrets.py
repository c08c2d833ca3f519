"""A key is sent to its server and appears nowhere else: messages, logs, files, exceptions, representations."""

from __future__ import annotations

import contextlib
import datetime
import io
import ipaddress
import logging
import pickle
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dyme.supervision.judge import JudgeConfig, endpoint, open_judge
from dyme.supervision.judge.__main__ import main
from dyme.supervision.judge.endpoint import printable
from tests.helpers.judge_asking import question
from tests.helpers.judge_server import Fault, JudgeServer, raw, reset, status

KEY = "sk-DyMe9f8e7d6c5b4a-secret"
LEAKS: list[Fault | None] = [
    None,
    status(401, text=f"Incorrect API key provided: {KEY[:7]}***{KEY[-4:]}"),
    status(403, text=f"key {KEY} may not"),
    status(400, text=f"odd header Authorization: Bearer {KEY}"),
    status(413, text=f"{KEY} sent too much"),
    status(500, text=f"crashed for {KEY}"),
    raw(f"<html>{KEY}</html>"),
    reset(),
]


@pytest.fixture
def logged() -> Any:
    """All that any logger says at the lowest level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("fault", LEAKS, ids=lambda fault: f"{fault.kind}{fault.code}" if fault else "right")
def test_the_key_is_written_nowhere(
    fault: Fault | None, tmp_path: Path, monkeypatch: Any, capfd: Any, logged: io.StringIO
) -> None:
    monkeypatch.setenv("DYME_TEST_KEY", KEY + "\n")  # as from a file
    errors: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(str(args)))
    with JudgeServer(key=KEY) as server, warnings.catch_warnings(record=True) as warned:
        settings = {"url": server.url, "model": "m", "api_key_env": "DYME_TEST_KEY"}
        cfg = JudgeConfig.model_validate(
            {"endpoints": [settings], "retries": 0, "breaker_failures": 1, "breaker_pause_s": 0.1}
        )
        server.next(*[fault] * 3 if fault else [])
        judge = open_judge(cfg, tmp_path)
        answer = judge.submit(question("q", record="r")).result(10)
        assert answer.ok == (fault is None)
        time.sleep(0.3)  # a probe
        shown = [repr(judge), str(vars(judge).keys()), repr(judge.counts()), repr(answer), repr(cfg)]
        shown += [cfg.model_dump_json(), yaml.safe_dump(cfg.model_dump(mode="json")), str(pickle.dumps(judge))]
        judge.close()
        assert server.calls and all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"judge": cfg.model_dump(mode="json")}))
        server.next(*[fault] * 2 if fault else [])
        assert main(["ping", "--config", str(tmp_path / "run.yaml")]) == (0 if fault is None else 1)
    output = capfd.readouterr()
    shown += [output.out, output.err, logged.getvalue(), *errors, *(str(each.message) for each in warned)]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(list(tmp_path.rglob("*.sqlite"))) == 1 and "DYME_TEST_KEY" in shown[4], "the test looks where it should"
    for text in shown:
        assert KEY not in text and KEY[:7] not in text and KEY[-6:] not in text, text[:2000]


def test_a_client_in_trouble_does_not_tell(monkeypatch: Any, tmp_path: Path) -> None:
    """Even an error inside the client, with the key in its text, becomes an answer and a line without it."""

    async def broken(*args: Any) -> Any:
        raise RuntimeError(f"Bearer {KEY}")

    monkeypatch.setenv("DYME_TEST_KEY", KEY)
    monkeypatch.setattr(endpoint, "send", broken)
    said: list[str] = []
    cfg = JudgeConfig.model_validate(
        {"endpoints": [{"url": "http://localhost:1", "model": "m", "api_key_env": "DYME_TEST_KEY"}]}
    )
    judge = open_judge(cfg, None, say=said.append)
    assert judge.submit(question("q")).result(10).reason == "bad_answer"
    judge.close()
    assert said and not any(KEY in line for line in said)


def test_exceptions_of_opening_do_not_tell(monkeypatch: Any) -> None:
    monkeypatch.setenv("DYME_TEST_KEY", f"{KEY} and more")
    cfg = JudgeConfig.model_validate(
        {"endpoints": [{"url": "http://localhost:1", "model": "m", "api_key_env": "DYME_TEST_KEY"}]}
    )
    told = io.StringIO()
    with contextlib.suppress(ValueError):
        try:
            open_judge(cfg, None)
        except ValueError:
            traceback.print_exc(file=told)
            raise
    assert "DYME_TEST_KEY" in told.getvalue() and KEY not in told.getvalue()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-made certificate of 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "judge")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = made.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    paths = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return paths


def test_a_server_that_nobody_vouches_for_gets_no_key(certificate: tuple[Path, Path], monkeypatch: Any) -> None:
    monkeypatch.setenv("DYME_TEST_KEY", KEY)
    with JudgeServer(key=KEY, tls=certificate) as server:
        settings = {"url": server.url, "model": "m", "api_key_env": "DYME_TEST_KEY"}
        cfg = JudgeConfig.model_validate({"endpoints": [settings], "retries": 0})
        for trusted in (False, True):
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            judge = open_judge(cfg, None, say=print)
            answer = judge.submit(question("q")).result(10)
            judge.close()
            assert answer.reason == ("" if trusted else "connection")
            assert server.count() == int(trusted)


def test_no_redirect_takes_the_key_elsewhere(monkeypatch: Any) -> None:
    monkeypatch.setenv("DYME_TEST_KEY", KEY)
    with JudgeServer() as elsewhere, JudgeServer(key=KEY) as server:
        moved = Fault("status", code=307, headers=(("Location", f"{elsewhere.url}/v1/chat/completions"),))
        server.always(moved)
        settings = {"url": server.url, "model": "m", "api_key_env": "DYME_TEST_KEY"}
        judge = open_judge(JudgeConfig.model_validate({"endpoints": [settings]}), None, say=print)
        assert judge.submit(question("q")).result(10).reason == "refused"
        judge.close()
        assert server.count() == 1 and not elsewhere.calls


def test_lines_for_people_are_printable() -> None:
    assert printable(f"\x1b[31m{KEY}\n\x00caf\u00e9", KEY) == "[31m*** caf"
    assert len(printable("x" * 9999, "")) == 200
