"""Which run becomes the champion, and when."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ablation.analysis.champion import Choice
from ablation.analysis.results import read_results
from ablation.base.errors import InputError, StoreAway
from ablation.running.champion import EXAMPLE_IMAGES, keep_examples, version_description
from ablation.running.status import read_status
from ablation.spec.objective import ACCURACY
from ablation.tracking.client import KEY_TAG, REFUSAL_TAG
from ablation.tracking.registry import champion_texts, keep_refusal, load_champion
from tests.champions import ChampionStudy, model_folder, winning_run, with_val_accuracy
from tests.servers import free_port


def test_a_finished_study_has_its_champion(champion_study: ChampionStudy) -> None:
    """The command itself has registered it."""
    run_id = winning_run(champion_study.result)
    version = champion_study.champion()
    assert (version.run_id, champion_study.versions()) == (run_id, {run_id: "1"})
    (model,) = champion_study.models()
    assert version.source == model.artifact_location
    outputs = [output.model_id for output in champion_study.client.get_run(run_id).outputs.model_outputs]
    assert outputs.count(model.model_id) == 1
    run = next(r for arm in champion_study.result.arms for r in arm.confirmations if r.run_id == run_id)
    assert f"arm {run.spec.arm}" in version.description
    for figure in (run.val_accuracy, run.test_accuracy):
        assert f"| {figure:.4f} |" in version.description
    assert champion_study.client.get_registered_model("small").description == "Which cut of a small network?"


def test_its_description_does_not_need_the_predictions(champion_study: ChampionStudy) -> None:
    arm = next(
        arm
        for arm in champion_study.result.arms
        if winning_run(champion_study.result) in {r.run_id for r in arm.confirmations}
    )
    lost = replace(arm, confirmations=[replace(run, predictions=None) for run in arm.confirmations])
    run = lost.confirmations[0]
    assert version_description(champion_study.result, Choice(lost, "it is"), run, 32) == version_description(
        champion_study.result, Choice(arm, "it is"), run, 32
    )


def test_the_cheapest_arm_is_registered_and_says_why(champion_study: ChampionStudy) -> None:
    """With a wide margin every arm is good enough. A third seed is made up, because two are too few for a test."""
    result = champion_study.result
    arms = [
        replace(arm, confirmations=[*arm.confirmations, replace(arm.confirmations[0], number=2)]) for arm in result.arms
    ]
    confirm = result.spec.confirm.model_copy(update={"champion": "cheapest", "equivalence": 99.0})
    changed = replace(result, arms=arms, spec=result.spec.model_copy(update={"confirm": confirm}))
    costs = {arm.arm.name: arm.confirmations[0].inference_operations or 0 for arm in arms}
    trained = {arm.arm.name: arm.best.trained_parameters or 0 for arm in arms if arm.best}
    registered = champion_study.register(changed)
    assert registered is not None
    cheapest = min(costs, key=lambda name: (costs[name], trained[name]))
    run = next(r for arm in arms for r in arm.confirmations if r.run_id == registered.run_id)
    assert run.spec.arm == cheapest
    version = champion_study.champion()
    assert version.run_id == registered.run_id
    assert registered.reason in version.description.replace("\\", "")
    (text,) = champion_texts(champion_study.store, "small")
    assert text.endswith(f"(version {version.version}): {registered.reason}.")
    champion_study.client.set_tag(registered.run_id, "superseded", "true")
    assert champion_texts(champion_study.store, "small") == [f"{text} Its configuration is no longer its arm's best."]
    champion_study.client.delete_tag(registered.run_id, "superseded")
    assert text in read_status("small", champion_study.store)[0].notes
    assert load_champion("small", store=str(champion_study.store.root)).registered == registered


def test_the_validation_predictions_are_those_of_the_best_epoch(champion_study: ChampionStudy) -> None:
    """The accuracy by which the best arm is chosen and the one by which the cheapest is are the same."""
    for arm in champion_study.result.arms:
        for run in arm.confirmations:
            assert run.predictions is not None
            validation = run.predictions.validation
            assert validation is not None
            assert len(validation.labels_N) == champion_study.result.val_images
            assert validation.scores_N(ACCURACY).mean() == pytest.approx(run.val_accuracy, abs=1e-6)
            assert run.inference_operations is not None
            assert run.inference_operations > 2 * run.spec.head_width * 10
            assert (run.inference_seconds or 0) > 0


def test_registering_again_changes_nothing(champion_study: ChampionStudy) -> None:
    def state() -> tuple[object, ...]:
        study = champion_study
        return study.versions(), study.models()[0].to_dictionary(), study.champion().last_updated_timestamp

    before = state()
    again = champion_study.register()
    assert again is not None
    assert (again.name, again.version, again.run_id) == ("small", "1", winning_run(champion_study.result))
    assert state() == before


def test_the_alias_follows_the_winner_there_and_back(champion_study: ChampionStudy) -> None:
    first = winning_run(champion_study.result)
    other = next(arm for arm in champion_study.result.arms if all(run.run_id != first for run in arm.confirmations))
    second = other.confirmations[1].run_id
    champion_study.register(with_val_accuracy(champion_study.result, second, 3.0))  # mean above 1: it must win
    assert (champion_study.champion().run_id, str(champion_study.champion().version)) == (second, "2")
    champion_study.register()
    assert (champion_study.champion().run_id, champion_study.versions()) == (first, {first: "1", second: "2"})


def test_test_accuracies_choose_nothing(champion_study: ChampionStudy) -> None:
    """Those who are worst on validation are given the best test accuracies, and the other way round."""
    arms = [
        replace(arm, confirmations=[
            replace(run, test_accuracy=1 - (run.val_accuracy or 0), predictions=None) for run in arm.confirmations
        ])
        for arm in champion_study.result.arms
    ]  # fmt: skip
    again = champion_study.register(replace(champion_study.result, arms=arms))
    assert again is not None
    assert again.run_id == winning_run(champion_study.result)


@pytest.mark.parametrize("missing", ["a confirmation run", "a trial", "confirmation"])
def test_an_incomplete_study_gets_no_champion(champion_study: ChampionStudy, missing: str) -> None:
    champion_study.forget()
    arms = list(champion_study.result.arms)
    spec = champion_study.result.spec
    if missing == "a confirmation run":
        arms[0] = replace(arms[0], confirmations=arms[0].confirmations[:1])
    elif missing == "a trial":
        arms[0] = replace(arms[0], trials=arms[0].trials[:1])
    else:
        spec = spec.model_copy(update={"confirm": spec.confirm.model_copy(update={"seeds": 0})})
    assert champion_study.register(replace(champion_study.result, spec=spec, arms=arms)) is None
    assert list(champion_study.client.search_registered_models()) == []
    with pytest.raises(
        InputError, match=r"study 'small' has no champion: it gets one when its command ends, after all"
    ):
        load_champion("small", store=champion_study.store.root)


def test_a_model_of_somebody_else_is_left_alone(
    champion_study: ChampionStudy, caplog: pytest.LogCaptureFixture
) -> None:
    champion_study.forget()
    champion_study.client.create_registered_model("small", tags={"team": "another"})
    assert champion_study.register() is None
    (message,) = [record.getMessage() for record in caplog.records if record.name == "ablation.running.champion"]
    assert "has a model 'small' that is not this study's" in message
    theirs = champion_study.client.get_registered_model("small")
    assert (theirs.tags, theirs.aliases, champion_study.versions()) == ({"team": "another"}, {}, {})
    with pytest.raises(InputError, match="has no champion"):
        load_champion("small", store=champion_study.store.root)


def test_a_study_of_another_database_does_not_take_the_alias(
    champion_study: ChampionStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """Two Optuna databases share one MLflow store, each with a study of the same name."""
    before = champion_study.champion()
    other = replace(champion_study.result, tags={**champion_study.result.tags, KEY_TAG: "0123/summary"})
    run = before.run_id
    (loser,) = [
        r for arm in other.arms for r in arm.confirmations if r.run_id != run and r.spec.arm == other.arms[0].arm.name
    ][:1]
    assert champion_study.register(with_val_accuracy(other, loser.run_id, 0.999)) is None
    (message,) = [record.getMessage() for record in caplog.records if record.name == "ablation.running.champion"]
    assert "has a model 'small' that is the champion of a study of the same name in another Optuna database" in message
    assert champion_study.champion().run_id == run
    assert list(champion_study.versions()) == [run]


def refuse(*_: object, **__: object) -> None:
    raise NotImplementedError("data-dependent control flow\nand 300 lines more")


def test_what_cannot_be_exported_costs_the_champion_alone(
    champion_study: ChampionStudy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind but the reason, until a champion is registered."""
    champion_study.forget()
    reason = "torch.export cannot export it (data-dependent control flow)"
    with monkeypatch.context() as patch:
        patch.setattr("torch.export.export", refuse)
        assert champion_study.register() is None
    assert caplog.messages.count(f"no champion is registered: {reason}") == 1
    assert list(champion_study.client.search_registered_models()) == []
    assert champion_study.models() == []
    assert summary_tags(champion_study)[REFUSAL_TAG] == reason
    assert champion_texts(champion_study.store, "small") == [
        f"The best run is not registered as the champion: {reason}."
    ]
    with pytest.raises(InputError) as refused:
        load_champion("small", store=str(champion_study.store.root))
    assert str(refused.value) == f"study 'small' has no champion: {reason}"
    result = read_results(champion_study.store, "small")
    assert champion_study.register(result) is not None
    assert REFUSAL_TAG not in summary_tags(champion_study)
    (text,) = champion_texts(champion_study.store, "small")
    assert text.startswith("The champion is ")


def summary_tags(champion_study: ChampionStudy) -> dict[str, str]:
    return champion_study.client.get_run(champion_study.result.summary_run_id).data.tags


def test_an_earlier_champion_stays_with_the_reason_why_the_best_run_is_none(
    champion_study: ChampionStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = champion_study.champion()
    other = next(
        arm for arm in champion_study.result.arms if champion.run_id not in {r.run_id for r in arm.confirmations}
    )
    result = with_val_accuracy(champion_study.result, other.confirmations[0].run_id, 3.0)
    with monkeypatch.context() as patch:
        patch.setattr("torch.export.export", refuse)
        assert champion_study.register(result) is None
    assert champion_study.champion().run_id == champion.run_id
    assert len(champion_study.models()) == 1
    registered, refused = champion_texts(champion_study.store, "small")
    assert registered.startswith("The champion is ")
    assert refused.startswith("The best run is not registered as the champion: torch.export cannot")
    champion_study.register(read_results(champion_study.store, "small"))
    assert champion_texts(champion_study.store, "small") == [registered]


def test_lost_weights_cost_the_champion_alone(champion_study: ChampionStudy, caplog: pytest.LogCaptureFixture) -> None:
    champion_study.forget()
    arm = next(arm for arm in champion_study.result.arms if arm.arm.levels["strategy"] == "feature_extraction")
    result = with_val_accuracy(champion_study.result, arm.confirmations[0].run_id, 3.0)
    backbone = result.spec.backbone.model_copy(update={"weights": "moved.safetensors"})
    moved = replace(result, spec=result.spec.model_copy(update={"backbone": backbone}))
    assert champion_study.register(moved) is None
    assert "no champion is registered: backbone.weights: moved.safetensors: no such file" in caplog.text
    assert champion_study.models() == []
    tags = summary_tags(champion_study)
    again = champion_study.register(replace(result, tags=tags))
    assert again is not None
    assert len(champion_study.models()) == 1


def test_a_long_reason_is_cut(champion_study: ChampionStudy) -> None:
    run_id = champion_study.result.summary_run_id
    keep_refusal(champion_study.store, run_id, "x" * 9000)
    assert summary_tags(champion_study)[REFUSAL_TAG] == "x" * 500
    for _ in range(2):  # an answer of the server may be lost
        keep_refusal(champion_study.store, run_id, "")
    assert REFUSAL_TAG not in summary_tags(champion_study)


def test_a_server_that_went_away_is_said_to_be_away(champion_study: ChampionStudy) -> None:
    """So that the end of a study says what waits, and the same command goes on; no warning would do that."""
    store = replace(champion_study.store, tracking_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreAway):
        replace(champion_study, store=store).register()


@pytest.mark.parametrize(
    "call",
    [
        "create_registered_model",
        "create_logged_model",
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_may_die_at_any_call(
    champion_study: ChampionStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, moment: str
) -> None:
    program = shutil.copy(model_folder(champion_study, champion_study.store) / "artifacts" / "program.pt2", tmp_path)
    monkeypatch.setattr(
        "ablation.running.champion.export_program", lambda model, images, path: shutil.copy(program, path)
    )  # it is slow
    champion_study.forget()
    original = getattr(MlflowClient, call)

    def dies(*arguments: Any, **named: Any) -> Any:
        if moment == "after":
            original(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, dies)
        with pytest.raises(KeyboardInterrupt):
            champion_study.register()
    champion_study.register()
    run_id = winning_run(champion_study.result)
    assert (champion_study.champion().run_id, champion_study.versions()) == (run_id, {run_id: "1"})
    (model,) = champion_study.models()
    outputs = [output.model_id for output in champion_study.client.get_run(run_id).outputs.model_outputs]
    assert outputs.count(model.model_id) == 1
    assert load_champion("small", store=str(champion_study.store.root)).registered.run_id == run_id


def test_the_example_images_are_enough(champion_study: ChampionStudy) -> None:
    """A process that has dropped the other pixels registers the same champion."""
    champion_study.forget()
    images = keep_examples(champion_study.images)
    assert images.train_images_NHWC.nbytes == 0
    assert len(images.test_images_NHWC) == EXAMPLE_IMAGES
    assert replace(champion_study, images=images).register() is not None
    champion = load_champion("small", store=str(champion_study.store.root))
    assert (champion.registered.run_id, champion.image_size) == (winning_run(champion_study.result), 32)
