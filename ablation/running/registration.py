"""Registration: a study's question, arms, tests and digests, sealed in MLflow before its first trial."""

from ablation import __version__
from ablation.analysis.registration import registration_content
from ablation.base.source import source_digest
from ablation.base.terminal import say
from ablation.running.session import Session
from ablation.search.studies import begun_trials
from ablation.tracking.registration import CODE_TAG, REGISTRATION_TAG, log_registration


def seal(session: Session) -> None:
    """Register a study that asks for it and has no trial yet, and record which code works on it.

    The caller holds the study's lock. A registration that exists is never written again, and one that is lost is not
    replaced once there are trials.

    Raises:
        StoreAway: the tracking server does not answer.
    """
    if not session.spec.preregister:
        return
    source = source_digest()
    has_begun = any(begun_trials(study) for study in session.studies.tuning.values())
    if REGISTRATION_TAG not in session.summary.tags() and not has_begun:
        weights_digest = session.weights.digest if session.weights else None
        code = {"version": __version__, "digest": source}
        content = registration_content(session.spec, session.images.digest, weights_digest, code)
        digest = log_registration(session.summary, content)
        say(f"Registered before the first trial: sha256 {digest}")
    session.summary.set_tags({f"{CODE_TAG}.{source}": f"ablation {__version__}"})
