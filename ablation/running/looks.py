"""Planned looks: decided once for all workers, from the runs of the look alone."""

from ablation.analysis.looks import decide
from ablation.analysis.results import NothingFinished, read_results
from ablation.base.errors import StoreAway
from ablation.base.terminal import say_prose
from ablation.running.session import Session, deliver_and_reconcile
from ablation.search.studies import is_look_due, read_decisions, store_decisions
from ablation.spec.looks import Decision, current_look, decision_texts
from ablation.storage.locks import study_lock
from ablation.tracking.looks import decision_tags, decisions_in


def decide_due_look(session: Session) -> bool:
    """Decide how the study continues if all runs of a planned look have ended; return whether they had.

    Every worker comes to the same decision, because it follows from these runs; the first one that has the study's
    lock stores it, in MLflow and then in Optuna's database, and the others read it.

    Raises:
        StoreAway: a server does not answer, or MLflow lacks runs of the look.
    """
    if not is_look_due(session.spec, session.studies):
        return False
    deliver_and_reconcile(session)
    with session.locks.exclusive(study_lock(session.spec.name)):
        share_decisions(session)
        if is_look_due(session.spec, session.studies):
            known = read_decisions(session.spec, session.studies)
            decision = _decision(session, current_look(session.spec.confirm, known))
            _store(session, [*known, decision])
            say_prose(decision_texts(session.spec.confirm, [*known, decision])[len(known)])
    return True


def share_decisions(session: Session) -> None:
    """Store what the planned looks decided in both databases, where one of them lost it; the caller holds the lock.

    Raises:
        StoreAway: a server does not answer.
    """
    if not session.spec.confirm.looks:
        return
    known = read_decisions(session.spec, session.studies)
    in_mlflow = decisions_in(session.spec.confirm, session.summary.tags())
    if known != in_mlflow:
        _store(session, max(known, in_mlflow, key=len))


def _decision(session: Session, seeds: int) -> Decision:
    try:
        result = read_results(session.store, session.spec.name)
    except NothingFinished:  # every trial failed: further seeds would confirm nothing
        return Decision(seeds, (), is_sure=True)
    if result.look is None or session.spec.confirm.looks[result.look] != seeds:
        raise StoreAway(
            f"MLflow lacks runs of the look at {seeds} seeds: another machine has yet to deliver them, or they are "
            "lost (--repair trains them again)"
        )
    return decide(result)


def _store(session: Session, decisions: list[Decision]) -> None:
    session.summary.set_tags(decision_tags(decisions))
    store_decisions(session.spec, session.studies, decisions)
