"""`python -m dyme.supervision.judge ping`: what a user runs first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dyme.supervision.judge.__main__ import main
from tests.helpers.judge_server import TRUNCATED_JSON, JudgeServer, free_port, raw, says, silence, status


def write(folder: Path, url: str, **fields: Any) -> Path:
    path = folder / "run.yaml"
    endpoints = [{"url": url, "model": "m0"}]
    path.write_text(yaml.safe_dump({"method": "dyme", "judge": {"endpoints": endpoints} | fields}))
    return path


def test_a_line_about_each_server(tmp_path: Path, capsys: Any) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with (
        JudgeServer(latency_ms=50) as good,
        JudgeServer(refuses=("response_format",)) as plain,
        JudgeServer() as wordy,
        JudgeServer() as silent,
        JudgeServer(key="k") as locked,
        JudgeServer() as missing,
        JudgeServer() as web,
        JudgeServer() as stupid,
    ):
        wordy.next(says("All is well."))
        silent.always(silence())
        missing.always(status(404, text="The model `m6` does not exist"))
        web.always(raw("<html>"))
        stupid.always(TRUNCATED_JSON)
        urls = [server.url for server in (good, plain, wordy, silent, locked, missing, web, stupid)]
        statuses = [main(["ping", "--config", str(write(tmp_path, url, timeout_s=2))]) for url in [*urls, dead]]
        lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and statuses == [0] * 3 + [1] * 6
    starts = ["ok"] * 3 + ["FAILED"] * 6
    assert [line.split()[0] for line in lines] == starts
    assert [f"m0 at {url}" in line for url, line in zip([*urls, dead], lines)] == [True] * 9
    assert " ms, structured output: yes" in lines[0] and int(lines[0].split(": ")[1].split(" ")[0]) >= 50
    assert all("structured output: no" in line for line in lines[1:3])
    mends = [
        "judge.timeout_s (2 s)",
        "api_key_env",
        "`m6` does not exist; check url and model",
        "judge.endpoints.0.url",
    ]
    mends += ["larger model", "is the server up"]
    for line, mend in zip(lines[3:], mends, strict=True):
        assert mend in line


def test_all_well(tmp_path: Path, capsys: Any) -> None:
    with JudgeServer() as server:
        assert main(["ping", "--config", str(write(tmp_path, server.url))]) == 0
        assert server.count("ping") == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("method: dyme", "no section 'judge'"),
        ("", "no section 'judge'"),
        ("[1]", "no section 'judge'"),
        ("judge: {endpoints: []}", "judge.endpoints is empty"),
        ("judge: {concurrency: 3}", "judge.endpoints is empty"),
        ("judge: {endpoints: [{url: host, model: m}]}", "judge.endpoints.0.url"),
        ("judge: {endpoints: [{url: http://a, model: m}, {url: http://b, model: m}]}", "behind a load balancer"),
        ("judge: {endpoint: []}", "unknown key 'judge.endpoint'; nearest: 'judge.endpoints'"),
        ("judge: [", "run.yaml"),
        ("judge: {endpoints: [{url: http://a, model: m}]}\nsupervision: {checker: dogs}", "supervision.checker"),
        ("judge: {endpoints: [{url: http://host, model: m, api_key_env: NO_SUCH_VARIABLE}]}", "NO_SUCH_VARIABLE"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: Any, text: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["ping", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith("error: ")


def test_no_such_file(tmp_path: Path, capsys: Any) -> None:
    assert main(["ping", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
