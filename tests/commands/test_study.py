"""`python -m ablation.study`: what it answers at once, how it can be stopped, and `--status` for readers."""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest

from ablation import study
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.running import checks, status
from ablation.running import study as running_study
from ablation.running.demo import demo_overrides
from ablation.search import status as search_status
from ablation.search.claims import claim_trial
from ablation.search.studies import TrialRecord, create_arms, open_storage
from ablation.spec import files
from ablation.spec.reading import load_study
from ablation.spec.study import StudySpec
from ablation.storage.locks import open_locks
from ablation.storage.store import Store, find_store
from tests.other_user import as_nobody, folder_for_all, needs_root
from tests.studies import Command, signal_handlers_kept


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--list"], 0),
        (["vgg_trunkation"], 2),
        (["vgg_truncation", "--set", "search.lr.low=-1"], 2),
        (["vgg_truncation", "--set", "data.source=imagefolder", "--set", "data.root=/nonexistent"], 2),
        (["vgg_truncation", "--set", "backbone.weights=/nonexistent.safetensors"], 2),
        (["vgg_truncation", "--device", "gpu"], 2),
        (["vgg_truncation", "--store", "/dev/null"], 2),
        (["vgg_truncation", "--nonsense"], 2),
    ],
)
def test_quick_answers_import_nothing_large(arguments: list[str], status: int, tmp_path: Path) -> None:
    code = (
        "import sys; from ablation import study; sys.argv = ['study', *sys.argv[1:]]; status = study.main();"
        "print(sorted({'torch', 'mlflow', 'optuna', 'sklearn'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {status}"
    assert len(done.stderr.splitlines()) == (1 if status == 2 else 0)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_a_file_that_cannot_be_read_ends_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's lock and a folder are no study files; the row of a file that is half written says what is wrong."""
    folder = tmp_path / "studies"
    (folder / "dir.toml").mkdir(parents=True)
    (folder / ".#mine.toml").symlink_to("me@host.1234")
    (folder / "mine.toml").write_text('question = "Which?"\n')
    (folder / "half.toml").write_text("question =")
    monkeypatch.setattr(files, "STUDY_FOLDERS", (folder,))
    assert files.study_files().keys() == {"half", "mine"}
    assert study.question_of(folder / "mine.toml") == "Which?"
    assert study.question_of(folder / "half.toml").startswith(f"{folder}/half.toml: not valid TOML")
    study.list_studies()


def test_a_new_study_is_named_without_the_suffix_of_its_file(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("--new", "my_cut.toml") == 0
    assert [path.name for path in (tmp_path / "studies").glob("*.toml")] == ["my_cut.toml"]


def test_an_empty_name_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("vgg_truncation", "--name", "", "--status") == 2
    assert "error: the study's name '' must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "owner", "name"),
    [
        (["--list"], study, "study_files"),
        (["--plan", "{file}"], study, "show_plan"),
        (["--check", "{file}"], checks, "check_study"),
        (["--status", "{file}"], study, "show_status"),
        (["--new", "mine"], study, "new_study"),
    ],
)
def test_ctrl_c_leaves_nothing_to_resume(
    arguments: list[str],
    owner: Any,
    name: str,
    command: Command,
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(owner, name, interrupted)
    assert command(*(argument.format(file=study_file) for argument in arguments)) == 130
    assert capsys.readouterr().err.strip() == ""


def test_ctrl_c_says_how_to_resume_a_run(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running_study, "run_study", interrupted)
    assert command(study_file, "--store", "my store") == 130
    assert capsys.readouterr().err.strip().splitlines() == [
        "Stopped; everything that had finished is kept. To resume:",
        f"    python -m ablation.study {study_file} --store 'my store'",
    ]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def printed(*arguments: object) -> tuple[int, str, str]:
    """Run the command; return its status and what it prints."""
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = ["study", *map(str, arguments)]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), signal_handlers_kept():
        return study.main(), output.getvalue(), errors.getvalue()


@needs_root
def test_status_of_a_store_that_one_may_only_read(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running trial is shown as running, an interrupted one as such, and one whose lock is hidden as unknown."""
    monkeypatch.setattr(sys, "argv", [])
    with folder_for_all() as folder:
        path = Path(shutil.copy(study_file, folder))
        store = find_store(str(folder / "store"))
        store.prepare()
        spec = load_study(path)
        studies = create_arms(open_storage(store, create=True), spec, {"trials_per_arm": 2}, "an experiment")
        locks = open_locks(store.optuna_url)
        claims = [claim_trial(spec, store, locks, studies, {"trials_per_arm": 2}) for _ in range(3)]
        assert claims[1] is not None
        assert claims[2] is not None
        claims[1].release()
        (claims[2].folder / "lock").chmod(0o600)

        def status() -> tuple[int, str, str]:
            return printed(path, "--status", "--store", store.root)

        assert status()[1].count("| 1 running |") == 2
        before = sorted((file, file.stat().st_mtime) for file in folder.rglob("*"))
        exit_status, output, errors = as_nobody(status)
        assert (exit_status, errors) == (0, "")
        assert [output.count(f"| 1 {state} |") for state in ("running", "interrupted", "unknown")] == [1, 1, 1]
        assert "unknown: running or interrupted; this user may not read the trials' locks." in output
        assert sorted((file, file.stat().st_mtime) for file in folder.rglob("*")) == before


def test_status_of_a_study_whose_file_is_gone(
    command: Command, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = find_store(None)
    store.prepare()
    spec = load_study(study_file, name="another")
    create_arms(open_storage(store, create=True), spec, {"trials_per_arm": 2}, "an experiment")
    study_file.unlink()
    for arguments in (["another"], [study_file, "--name", "another"], [study_file.with_name("another.toml")]):
        assert command(*arguments, "--status") == 0
        assert "fine_tune_all" in capsys.readouterr().out
    assert command("anothre", "--status") == 2
    assert capsys.readouterr().err == f"error: {store.root}: has no study 'anothre'; did you mean 'another'?\n"
    assert command("another") == 2
    assert capsys.readouterr().err.startswith("error: no study 'another'")


@pytest.mark.parametrize(("arguments", "reader"), [(("{file}", "--status"), status), (("--list",), search_status)])
@pytest.mark.parametrize("is_made_again", [True, False])
def test_an_arm_is_deleted_while_it_is_read(
    arguments: tuple[str, ...], reader: ModuleType, is_made_again: bool, command: Command, study_file: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By a process that begins the study with another objective, or in Optuna's dashboard."""
    store = find_store(None)
    store.prepare()
    spec = load_study(study_file)
    create_arms(storage := open_storage(store, create=True), spec, {"trials_per_arm": 2}, "an experiment")
    read = search_status.trial_records

    def trial_records(*read_of: Any) -> dict[str, list[TrialRecord]]:
        monkeypatch.setattr(reader, "trial_records", read)
        optuna.delete_study(study_name="small/block1,fine_tune_all", storage=storage)
        if is_made_again:
            create_arms(storage, spec, {"trials_per_arm": 2}, "an experiment")
        return read(*read_of)

    monkeypatch.setattr(reader, "trial_records", trial_records)
    assert command(*(part.format(file=study_file) for part in arguments), "--store", store.root) == 0
    arms = 3 + is_made_again
    assert (f"| {arms} |" if arguments == ("--list",) else f"0 of {2 * arms} runs") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vgg_trunction", "; did you mean 'vgg_truncation'?"), ("vgg_truncation", ""), ("vgg_truncation-demo", ""),
     ("vgg_trunction-demo", "; did you mean 'vgg_truncation'?"), ("x", "")],
)  # fmt: skip
def test_status_in_an_empty_store_names_the_file_that_may_be_meant(
    command: Command, name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, "--status") == 2
    assert capsys.readouterr().err == f"error: {find_store(None).root}: has no study {name!r}{hint}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--list", "vgg_truncation"], "--list: lists all studies, without a NAME; --status vgg_truncation shows one"),
        (["--list", "--store", "s", "x"], "--list: lists all studies, without a NAME; --status x shows one"),
        (["--new", "mine", "--set", "epochs=3"], "--new and --set: choose one of them"),
        (["--new", "mine", "--trials", "3"], "--new and --trials: choose one of them"),
        (["--list", "--demo"], "--list and --demo: choose one of them"),
    ],
)
def test_words_without_effect_are_refused(
    command: Command, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not Path("studies").exists()


NO_EFFECT = """
question = "q"
trials_per_arm = 2
epochs = 10
[backbone]
name = "vit_b_16"
weights = "imagenet"
[data]
source = "digits"
image_size = 64
[fixed]
freeze_depth = {depth}
[factors]
strategy = ["feature_extraction", "fine_tune_top"]
patience = {patiences}
[search]
lr = {{ low = 3e-3, high = 3e-1, log = true }}
"""


def test_what_has_no_effect_is_accepted_in_demos_quick_tries_and_studies_that_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo cuts a network to five blocks and a study to six epochs; earlier versions refused less."""
    file, store = tmp_path / "mine.toml", find_store(str(tmp_path / "s"))

    def load(*settings: tuple[list[str], Any], is_try: bool = False, **parts: Any) -> StudySpec:
        file.write_text(NO_EFFECT.format(**{"depth": 9, "patiences": [0, 6], **parts}))
        return study.load_accepted(file, "mine", list(settings), store, is_try=is_try)

    assert load().factors.entries()["patience"] == [0, 6]
    demo = demo_overrides(study.read_study_file(file), store)
    assert load(*demo, is_try=True).epochs == 6
    assert load((["epochs"], 4), is_try=True).factors.entries()["patience"] == [0, 6]
    with pytest.raises(InputError, match=r"factors.patience: 9 has no effect within epochs = 10"):
        load(patiences=[0, 9])
    monkeypatch.setattr(study, "may_have_begun", lambda *_: True)
    assert load(patiences=[0, 9]).factors.entries()["patience"] == [0, 9]


@pytest.mark.parametrize(("error", "may"), [(StoreAway, True), (StoreError, False), (InputError, False)])
def test_a_study_may_have_begun_while_its_server_is_away(
    error: type[Exception], may: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is waited for, rather than refused for what a study that has begun may have."""

    def fail(store: Store) -> None:
        raise error("as said")

    store = find_store(str(tmp_path))
    monkeypatch.setattr("ablation.search.studies.brief_storage", fail)
    assert study.may_have_begun(store, "mine") == may


def test_a_study_is_found_in_its_store(finished_study: Path, tmp_path: Path) -> None:
    store = find_store(str(finished_study / "store"))
    assert study.may_have_begun(store, "small")
    assert not study.may_have_begun(store, "other")
    assert not study.may_have_begun(find_store(str(tmp_path / "none")), "small")
    assert not (tmp_path / "none").exists()


@needs_root
@pytest.mark.parametrize("hidden", ["a study file", "data.root", "below data.root", "a weights file", "the store"])
def test_paths_that_one_may_not_reach_are_refused(
    hidden: str, study_file: Path, narrow_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the path, and status 2."""
    monkeypatch.setattr(sys, "argv", [])
    with folder_for_all() as folder:
        closed = folder / "closed"
        (closed / "images" / "train" / "a").mkdir(parents=True)
        (folder / "results").mkdir()
        (folder / "results").chmod(0o777)
        path, weights = (Path(shutil.copy(file, folder)) for file in (study_file, narrow_weights))
        weights.chmod(0o644)
        arguments: list[object] = [path, "--check", "--store", folder / "results"]
        arguments += ["--set", f"backbone.weights={weights}"]
        arguments += {
            "a study file": [],
            "data.root": ["--set", f"data={{source='imagefolder', root='{closed}/images'}}"],
            "below data.root": ["--set", f"data={{source='imagefolder', root='{closed}'}}"],
            "a weights file": ["--set", f"backbone.weights={closed}/weights.safetensors"],
            "the store": ["--store", closed / "store" / "more"],
        }[hidden]
        if hidden == "a study file":
            arguments[0] = closed / "small.toml"
        printed(*arguments)  # so that everything is imported
        closed.chmod(0o700)
        exit_status, _, errors = as_nobody(lambda: printed(*arguments))
        assert exit_status == 2, errors
        assert errors.startswith("error: ")
        assert str(closed) in errors
        assert "ermission denied" in errors
        assert errors.count("\n") == 1
