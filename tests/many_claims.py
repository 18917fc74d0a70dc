"""Claims per second of many processes on one PostgreSQL, without training and without MLflow.

    python -m tests.many_claims PROCESSES ablation      as this package claims, reports and ends trials
    python -m tests.many_claims PROCESSES optuna        by Optuna's ask and tell alone
    python -m tests.many_claims PROCESSES proxy         the same through Optuna's gRPC storage proxy (needs grpcio)

PostgreSQL is Debian's, started on loopback. The processes share the memory of what they import.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from ablation.benchmark.scale import simulated_spec
from ablation.search import configure_optuna
from ablation.search.claims import claim_trial, end_trial, release_and_delete, report_epochs, store_spec
from ablation.search.space import suggest
from ablation.search.studies import create_arms, open_storage
from ablation.spec.metrics import EpochMetrics
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from tests.servers import PostgreSQL, free_port

SECONDS = 30
SPEC = simulated_spec(10**6).model_copy(update={"name": "many"})
CONTENT: dict[str, Any] = {"name": "many"}
EPOCH = EpochMetrics(1, 1.0, 0.5, 1.0, 0.5, 0.01, 1000.0, timestamp=0)


def store_of(url: str, folder: str) -> Store:
    return Store(Path(folder), f"sqlite:///{folder}/mlflow.db", url)


def steps_of_ablation(url: str, folder: str) -> Callable[[], object]:
    """Return a function that claims a trial, reports an epoch, and ends it."""
    configure_optuna()
    store, locks = store_of(url, folder), open_locks(url)
    storage = open_storage(store)
    assert storage is not None
    studies = create_arms(storage, SPEC, CONTENT, "experiment")

    def step() -> None:
        claim = claim_trial(SPEC, store, locks, studies, CONTENT)
        assert claim is not None
        suggest(claim.trial, SPEC, claim.arm)
        store_spec(claim, {"trial": str(claim.trial.number)})
        report_epochs(claim, [EPOCH], SPEC.goal)
        end_trial(claim, "finished", 0.5, "", "run")
        release_and_delete(claim)

    return step


def steps_of_optuna(storage: Any) -> Callable[[], object]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="many", storage=storage, sampler=optuna.samplers.RandomSampler())

    def step() -> None:
        trial = study.ask()
        trial.report(trial.suggest_float("lr", 1e-4, 1e-1, log=True), 1)
        study.tell(trial, 0.5)

    return step


def work(kind: str, url: str, folder: str, port: int, barrier: Any, answers: Any) -> None:
    if kind == "ablation":
        step = steps_of_ablation(url, folder)
    elif kind == "optuna":
        step = steps_of_optuna(optuna.storages.RDBStorage(url))
    else:
        proxy = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)
        proxy.wait_server_ready(timeout=60)
        step = steps_of_optuna(proxy)
    step()
    barrier.wait()
    began, used, longest, count = time.monotonic(), time.process_time(), 0.0, 0
    while (now := time.monotonic()) < began + SECONDS:
        step()
        longest, count = max(longest, time.monotonic() - now), count + 1
    answers.put((count, longest, time.process_time() - used))
    barrier.wait()


def serve(url: str, port: int) -> None:
    optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage(url), host="127.0.0.1", port=port)


def main() -> None:
    processes, kind = int(sys.argv[1]), sys.argv[2]
    if kind == "proxy":
        optuna.storages.GrpcStorageProxy()  # where grpcio is missing, this fails at once, and not each process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablation.benchmark.scale", "tests.servers"])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = PostgreSQL(Path(folder) / "postgresql")
        server.query("ALTER SYSTEM SET max_connections = 400")
        server.stop()
        server.start()
        url, port = server.new_database().replace("postgresql://", "postgresql+psycopg://"), free_port()
        if kind == "ablation":
            storage = open_storage(store_of(url, folder), create=True)
            assert storage is not None
            create_arms(storage, SPEC, CONTENT, "experiment")
        else:
            optuna.create_study(study_name="many", storage=url, direction="maximize")
        proxy = context.Process(target=serve, args=(url, port))
        if kind == "proxy":
            proxy.start()
        barrier, answers = context.Barrier(processes + 1), context.Queue()
        workers = [
            context.Process(target=work, args=(kind, url, folder, port, barrier, answers)) for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        barrier.wait()
        began = time.monotonic()
        (connections,) = server.query("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'd%'")[0]
        (kib,) = [
            line.split()[1]
            for line in Path(f"/proc/{workers[0].pid}/smaps_rollup").read_text().splitlines()
            if "Private_Dirty" in line
        ]
        told = [answers.get() for _ in workers]
        seconds = time.monotonic() - began
        barrier.wait()
        for worker in workers:
            worker.join()
        if kind == "proxy":
            proxy.terminate()
        (size,) = server.query(f"SELECT pg_database_size('{url.rpartition('/')[2]}')")[0]
        counts, longest, used = zip(*told, strict=True)
        print(
            f"{kind}, {processes} processes: {sum(counts)} trials in {seconds:.0f} s, {sum(counts) / seconds:.1f} per "
            f"second; {min(counts)} to {max(counts)} per process, the longest {max(longest):.1f} s; "
            f"processor {sum(used) / sum(counts):.3f} s per trial; {connections} connections; "
            f"{int(kib) / 1000:.0f} MB of its own per process; {size / 1e6:.1f} MB; load {os.getloadavg()[0]:.0f}"
        )
        server.stop()


if __name__ == "__main__":
    main()
