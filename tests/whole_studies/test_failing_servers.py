"""Servers that fail all the time: a study ends all the same, in one start, as if nothing had happened."""

import re
from pathlib import Path

import pytest

from tests.outcomes import outcome
from tests.servers import PostgreSQL, Server, proxied
from tests.studies import ONE_ARM, Command

RATES = {"HTTP": 0.15, "PostgreSQL": 0.02}  # of requests and of packets


def check_a_study_ends(
    command: Command, arguments: list[object], server: Server, postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seed: int,
) -> str:  # fmt: skip
    """Compare a study whose servers fail with an undisturbed one; return how much failed.

    No library draws a progress bar or says in its own words what fails.
    """
    assert command(*arguments, "--store", "whole") == 0
    whole = outcome(
        f"sqlite:///{Path('whole').absolute()}/mlflow.db", f"sqlite:///{Path('whole').absolute()}/optuna.db"
    )
    with proxied(server, postgresql) as (web, database, environment), monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        web.fail_at_random(RATES["HTTP"], seed)
        database.fail_at_random(RATES["PostgreSQL"], seed)
        capfd.readouterr()
        assert command(*arguments) == 0
        said = "".join(capfd.readouterr())
        counts = f"{dict(web.counts)} requests, {dict(database.counts)} packets"
        web.fault, database.breaks = (lambda method, path: None), lambda: False
        assert outcome(environment["MLFLOW_TRACKING_URI"], environment["OPTUNA_STORAGE"]) == whole
        assert web.counts["503"] + web.counts["reset"] + web.counts["empty"] > 0
        assert database.counts["reset"] > 0
        texts_of_libraries = r"artifacts:|\d+%\|.*|.*urllib3.*|.*ConnectionPool.*|.*sqlalche.*|.*psycopg.*|Traceback"
        assert re.findall(texts_of_libraries, said) == []
    return counts


@pytest.mark.slow
def test_a_short_study(
    command: Command, study_file: Path, server: Server, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [study_file, *ONE_ARM, "--trials", "1", "--epochs", "2", "--set", "confirm.seeds=1"]
    check_a_study_ends(command, arguments, server, postgresql, monkeypatch, capfd, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_study_of_four_arms(
    command: Command, study_file: Path, server: Server, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], seed: int,
) -> None:  # fmt: skip
    print(check_a_study_ends(
        command, [study_file, "--set", "confirm.seeds=2"], server, postgresql, monkeypatch, capfd, seed
    ))  # fmt: skip
