"""Optuna's database on a server whose connections break: at every packet of a task once."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ablation.base.errors import StoreAway
from ablation.base.retries import wait_out
from ablation.search import studies
from ablation.search.identity import check_identity
from ablation.search.patient_storage import ask_database
from ablation.search.studies import brief_storage, create_arms, open_storage, settle_precision, stored_studies
from ablation.storage.locks import open_locks
from ablation.storage.store import Store, find_store
from tests.launching.slurm_cluster import wait_for
from tests.search.steps import CONTENT, TWO_ARMS, begin, claim_next, end, study
from tests.servers import PostgreSQL, TcpProxy

SPEC = study("vgg_truncation", *TWO_ARMS)
PATIENCE = 20  # seconds


@pytest.fixture
def proxy(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TcpProxy]:
    """A proxy before an empty database, in the environment."""
    started = TcpProxy(postgresql.port)
    address = postgresql.new_database().replace(f":{postgresql.port}/", f":{started.port}/")
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    monkeypatch.chdir(tmp_path)
    yield started
    started.close()


@pytest.fixture
def remote(proxy: TcpProxy) -> Store:
    return find_store(None)


def broken_at_every_packet(proxy: TcpProxy, task: Callable[[], object], every: int = 1) -> int:
    """Do a task again and again: the connection breaks at its first packet, then at its second, and so on.

    Returns the number of packets that were broken; every result has to be that of the undisturbed task.
    """
    expected = task()
    broken = 0
    while True:
        seen: list[int] = []

        def breaks(at: int = broken * every, seen: list[int] = seen) -> bool:
            seen.append(1)
            return len(seen) == at + 1

        proxy.breaks = breaks
        assert wait_out(task, PATIENCE, lambda text: None) == expected, f"packet {broken * every}"
        proxy.breaks = lambda: False
        if len(seen) <= broken * every:
            return broken
        broken += 1


@pytest.mark.usefixtures("impatient")
def test_opening_and_checking(proxy: TcpProxy, remote: Store, caplog: Any) -> None:
    """From the locks over the tables to the study's identity and precision; no library says a word."""
    keys = {arm.user_attrs["key"] for arm in begin(SPEC, remote).all()}

    def task() -> tuple[list[str], set[str], str]:
        storage = open_storage(remote, create=True)
        assert storage is not None
        with open_locks(remote.optuna_url).exclusive("locks/x"):
            check_identity(storage, SPEC.name, CONTENT, is_begun=True)
            arms = create_arms(storage, SPEC, CONTENT, "e")
            precision = settle_precision(storage, SPEC.name, arms, "float32")
        return sorted(arms.tuning), {arm.user_attrs["key"] for arm in arms.all()}, precision

    assert broken_at_every_packet(proxy, task, every=101) > 2
    assert task() == (["block1", "block2"], keys, "float32")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("impatient")
def test_reading_trials(proxy: TcpProxy, remote: Store, caplog: Any) -> None:
    """Optuna itself asks a second time within the transaction that has failed; its warning is not shown."""
    arms = begin(SPEC, remote)
    claim = claim_next(SPEC, remote, arms)
    claim.trial.report(0.5, 1)
    end(claim, "finished", 0.5)

    def task() -> list[Any]:
        again = open_storage(remote)
        assert again is not None
        arm = studies.study_arms(again, SPEC.name).tuning[claim.arm.name]
        return [(trial.number, trial.value, trial.intermediate_values) for trial in arm.get_trials()]

    assert broken_at_every_packet(proxy, task, every=41) > 2
    assert task() == [(0, 0.5, {1: 0.5})]
    assert "SELECT" not in caplog.text


@pytest.mark.usefixtures("impatient")
def test_trials_are_claimed_and_ended_once(proxy: TcpProxy, remote: Store) -> None:
    """While 1 % of all packets break: exactly the budget, and each trial has its value."""
    arms, locks = begin(SPEC, remote), open_locks(remote.optuna_url)
    proxy.fail_at_random(0.01, 0)

    def claim_or_none() -> Any:
        try:
            return claim_next(SPEC, remote, arms, locks)
        except StoreAway:
            locks.release_all()
            raise

    while (claim := wait_out(claim_or_none, PATIENCE, lambda text: None)) is not None:
        value = 0.25 * (claim.trial.number + 1)
        wait_out(partial(end, claim, "finished", value), PATIENCE, lambda text: None)
    assert proxy.counts["reset"] > 0
    proxy.breaks = lambda: False
    for arm in arms.tuning.values():
        assert [(t.number, t.state, t.value) for t in arm.get_trials()] == [
            (0, TrialState.COMPLETE, 0.25), (1, TrialState.COMPLETE, 0.5)
        ]  # fmt: skip
    for arm in arms.confirmation.values():
        assert [t.state for t in arm.get_trials()] == [TrialState.COMPLETE] * 2


def test_an_ended_trial_is_never_changed(store: Store) -> None:
    """The answer to its end was lost, and the end is repeated."""
    arm = begin(SPEC, store).tuning["block1"]
    trial = arm.ask()
    arm.tell(trial, 0.5)
    with pytest.raises(Exception, match="another worker has ended it"):
        ask_database(lambda: trial.report(0.1, 5))
    assert arm.get_trials()[0].value == 0.5


def test_optuna_has_the_methods_that_are_passed_on() -> None:
    assert {"create_new_trial", "set_trial_state_values"} <= optuna.storages.BaseStorage.__abstractmethods__


def test_a_process_keeps_one_connection_to_a_server(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = postgresql.new_database()
    store = Store(tmp_path / "store", f"sqlite:///{tmp_path}/mlflow.db", url)

    def connections() -> int:
        name = url.rpartition("/")[2]
        ((count,),) = postgresql.query(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")
        return int(count)

    storage = open_storage(store, create=True)
    studies = create_arms(storage, SPEC, CONTENT, "an experiment")
    for _ in range(2):
        trial = studies.tuning["block1"].ask()
        trial.set_user_attr("run_id", "a run")
        studies.tuning["block1"].tell(trial, 0.5)
    wait_for(lambda: connections() == 1, 10)  # a server takes a moment to see that one is closed
    with brief_storage(store) as other:
        assert other is not None
        assert stored_studies(other) == [SPEC.name]
        assert connections() == 2
    wait_for(lambda: connections() == 1, 10)
    storage.remove_session()
    wait_for(lambda: connections() == 0, 10)
