"""Studies in odd places: clocks that jump, odd names, store paths with signs, two users of one store."""

import json
import os
import re
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import time_machine
from PIL import Image

from ablation.analysis.results import read_results
from ablation.base.text import escape_markdown, visible
from ablation.running import trial
from ablation.running.status import read_status
from ablation.storage.locks import open_locks
from ablation.storage.store import find_store
from ablation.tracking.client import NOTE_TAG
from tests.odd_names import NAMES, QUESTION
from tests.other_user import folder_for_all, needs_root
from tests.outcomes import outcome
from tests.studies import ONE_ARM, Command, client, patched_train, runs
from tests.victims import Victims

SMALL = (*ONE_ARM, "--trials", "2", "--epochs", "3", "--set", "confirm.seeds=1")
HOUR = 3600.0


def addresses(store: Path) -> tuple[str, str]:
    return f"sqlite:///{store.absolute()}/mlflow.db", f"sqlite:///{store.absolute()}/optuna.db"


def test_a_clock_that_jumps(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour forward and back, and to 1970 and back, at every epoch: the study equals another one.

    No worker loses its trial, and no time is shown that is negative or absurd. The clock that does not jump, by which
    pauses and time-outs go, is left alone.
    """
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    assert command(study_file, *SMALL, "--store", "calm") == 0
    capsys.readouterr()
    now = time.time()
    offsets = [HOUR, -HOUR, 10 - now, HOUR, 0, 10 - now, -HOUR, 10 - now, 0]
    store = find_store("jumps")
    locks = open_locks(store.optuna_url)
    seen: list[tuple[int, bool | None]] = []  # running trials as --status has them, and whether another may claim it

    def jump(number: int, epoch: int) -> None:
        clock.move_to(now + offsets.pop(0))
        (lock,) = (store.work_root / "checkpoints").glob("*/*/lock")
        seen.append(
            (len(read_status("small", store)[1]), locks.are_taken([str(lock.parent.relative_to(store.work_root))])[0])
        )

    patched_train(monkeypatch, jump)
    with time_machine.travel(now) as clock:
        assert command(study_file, *SMALL, "--store", "jumps") == 0
        assert offsets == []
        output = capsys.readouterr().out
        assert command("small", "--store", "jumps", "--status") == 0
    assert seen == [(1, True)] * 9
    assert outcome(*addresses(Path("jumps"))) == outcome(*addresses(Path("calm")))
    assert not re.search(r"\d (h|min)\b.*left|-\d+(\.\d)? s", output)  # of a study that takes seconds
    assert not re.search(r"\d (h|min)\b|-\d", capsys.readouterr().out.replace("- ", ""))
    for kind in ("trial", "confirmation", "summary"):
        for run in runs(Path("jumps"), "small", kind):
            assert run.info.end_time >= run.info.start_time


def test_workers_whose_clocks_differ(
    victims: Victims, study_file: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three, two have clocks that jump by hours and between 1970 and now: exactly the budget, the same figures.

    Meanwhile `--status` takes no running trial for an interrupted one, and no time that is shown is negative or absurd.
    """
    now, store = time.time(), tmp_path / "s"
    arguments = [study_file, *ONE_ARM, "--trials", "4", "--epochs", "2", "--set", "confirm.seeds=2", "--store"]
    folders = [tmp_path / name for name in ("calm", "hours", "1970", "true")]
    for folder in folders:
        folder.mkdir()
    assert victims.run(folders[0], [*arguments, tmp_path / "calm" / "s"]) == 0
    clocks = [(HOUR, -HOUR, 10 - now), (10 - now, 0, 10 - now, HOUR)]
    pids = [victims.start(folders[n + 1], [*arguments, store], clock=clocks[n]) for n in range(2)]
    while not list(store.glob("checkpoints/*/*/lock")):  # one of them begins
        assert not all(map(victims.has_ended, pids)), [victims.errors(folder) for folder in folders[1:3]]
        time.sleep(0.05)
    pids.append(victims.start(folders[3], [*arguments, store]))
    texts = []
    while not all(map(victims.has_ended, pids)):
        capsys.readouterr()
        assert command(study_file, "--status", "--store", store) == 0
        texts.append(capsys.readouterr().out)
        time.sleep(0.1)
    outputs = [victims.output(folder) for folder in folders]
    assert [victims.wait(pid) for pid in pids] == [0] * 3, outputs
    assert outcome(*addresses(store)) == outcome(*addresses(tmp_path / "calm" / "s"))
    assert any(" running" in text for text in texts)
    are_interrupted = ["interrupted" in text for text in texts]  # for a moment a trial that ends may seem to be
    assert not any(first and second for first, second in pairwise(are_interrupted))
    for text in outputs:
        assert not re.search(r"\d (h|min)\b.*left|-\d+(\.\d)? s", text)
    answers = {line for text in outputs for line in text.splitlines() if line.startswith("Answer")}
    assert len(answers) == 1
    of_all_kinds = [run.info for kind in ("trial", "confirmation", "summary") for run in runs(store, "small", kind)]
    assert all(info.end_time >= info.start_time for info in of_all_kinds)
    assert any(abs(info.start_time / 1000 - now) > HOUR / 2 for info in of_all_kinds)


@pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses")
def test_odd_names_of_classes_and_files(
    command: Command,
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A study with them ends. MLflow's UI would load a picture of a description, and a terminal obeys some signs."""
    pixels = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for other in NAMES[:5]:
            picture = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), np.uint8))
            picture.save(tmp_path / "images" / name / f"{other.replace('/', '')}.png")
    data = {"source": "imagefolder", "root": str(tmp_path / "images"), "image_size": 8, "val_fraction": 0.3}
    overrides = [f"data={{{', '.join(f'{key}={json.dumps(value)}' for key, value in data.items())}}}"]
    overrides += [f"question={json.dumps(QUESTION, ensure_ascii=False)}", "confirm.seeds=1"]
    arguments = [argument for override in overrides for argument in ("--set", override)]
    store = Path("mlruns")
    at_first: set[str] = set()

    def note() -> str:
        experiment = client(store).get_experiment_by_name("small")
        assert experiment is not None
        return str(experiment.tags[NOTE_TAG])

    patched_train(monkeypatch, lambda number, epoch: at_first.add(note()))
    assert command(study_file, *ONE_ARM, *arguments, "--trials", "1", "--epochs", "1") == 0
    printed = capsys.readouterr()
    assert visible(printed.out + printed.err) == printed.out + printed.err
    assert visible(QUESTION) in printed.out
    escaped = escape_markdown(QUESTION)
    assert at_first == {escaped}
    assert client(store).get_registered_model("small").description == escaped
    (summary,) = runs(store, "small", "summary")
    for text in (note(), summary.data.tags[NOTE_TAG]):
        assert text.startswith(f"**{escaped}** ")
    assert read_results(find_store(None), "small").classes == sorted(NAMES)


@pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses")
def test_store_paths_with_signs(command: Command, study_file: Path) -> None:
    """All that may stand in a path and that addresses and shells know; % and ? would end an address early."""
    store = Path("a # b & c; $HOME 'd' \"e\" `f` \\g é (h) [i] {j} }k{ ~ + = @ : * !")
    assert command(study_file, *SMALL, "--store", store) == 0
    assert command(study_file, *SMALL, "--store", store) == 0  # resumes
    assert {path.name for path in store.iterdir()} >= {"optuna.db", "mlflow.db", "artifacts", "reports"}
    assert [path.name for path in Path().iterdir()] == [store.name]
    assert len(runs(store, "small")) == 2
    for sign in "%?":
        assert command(study_file, *SMALL, "--store", f"x{sign}y") == 2
    assert not list(Path().glob("x*"))


@needs_root
def test_two_users_of_one_store(victims: Victims, study_file: Path, narrow_weights: Path) -> None:
    """Users without an entry or a home folder, in a folder of their common group; each run is its own process.

    One resumes what the other one's worker left when it was killed, and both work at once. The umask of one would keep
    from the group what they write, but not in the folder of the group; a store that they make there stays private.
    """
    first, second, group = 3001, 3002, 3000  # of nobody on this machine
    with folder_for_all() as folder:
        common = folder / "common"
        for name in ("", first, second, "s"):
            (common / str(name)).mkdir()
            os.chown(common / str(name), -1, group)
            (common / str(name)).chmod(0o2775)
        weights = Path(shutil.copy(narrow_weights, folder))
        weights.chmod(0o644)
        file = folder / "small.toml"
        file.write_text(study_file.read_text().replace(str(narrow_weights), str(weights)))
        cache = {"ABLATION_CACHE": str(common / "cache")}

        def start(user: int, umask: int, *arguments: object, store: str = "s", kill_at: str | None = None) -> int:
            return victims.start(
                common / str(user), [file, *SMALL, "--store", common / store, *arguments],
                user=(user, group, umask), environment=cache, kill_at=kill_at,
            )  # fmt: skip

        def run(user: int, umask: int, *arguments: object, store: str = "s") -> tuple[int, str]:
            (common / str(user) / "steps.err").unlink(missing_ok=True)
            status = victims.wait(start(user, umask, *arguments, store=store))
            return status, victims.errors(common / str(user))

        assert run(first, 0o077, store="private") == (0, "")
        assert victims.wait(start(first, 0o077, kill_at="INSERT INTO metrics")) == -signal.SIGKILL
        assert list((common / "s" / "checkpoints").rglob("*.ckpt"))
        both = [start(second, 0o002), start(first, 0o077)]
        assert [victims.wait(pid) for pid in both] == [0, 0], [victims.errors(common / str(u)) for u in (first, second)]
        assert outcome(*addresses(common / "s")) == outcome(*addresses(common / "private"))
        assert {path.stat().st_uid for path in (common / "s").rglob("*")} == {first, second}
        assert {path.stat().st_gid for path in (common / "s").rglob("*")} == {group}
        for path in (common / "s").rglob("*"):
            assert path.stat().st_mode & 0o060 == 0o060, path
        before = times_of(common / "private")
        for arguments in ([], ["--status"]):
            status, error = run(second, 0o002, *arguments, store="private")
            assert (status, error.count("\n")) == (2, 1)
            assert error.startswith(f"error: {'' if arguments else '--store: '}{common}/private")
        assert times_of(common / "private") == before


def times_of(store: Path) -> dict[Path, int]:
    """Return when each file and folder was last changed, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in store.rglob("*")}
