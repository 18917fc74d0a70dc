"""What a user says to an engine, and the name of a launch."""

from pathlib import Path

import pytest

from ablation.base.errors import InputError
from ablation.launching.kubernetes import object_name
from ablation.launching.programs import call
from ablation.launching.request import launch_label, read_options
from ablation.storage.store import Store, find_store


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[launch]\npartition = "gpu"\ntime = 90\nexclusive = true\nverbose = false\n[other]\nx = 1\n')
    assert read_options(["partition=cpu", "comment=a=b"], file) == {
        "partition": "cpu", "time": "90", "exclusive": "", "comment": "a=b",
    }  # fmt: skip


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    """Some editors write one; study files may have it too."""
    file = tmp_path / "cluster.toml"
    file.write_bytes(b'\xef\xbb\xbf[launch]\npartition = "gpu"\n')
    assert read_options([], file) == {"partition": "gpu"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [("partition", "'partition' is not KEY=VALUE"), ("--time=1", "'--time' is no option's name"),
     ("Time=1", "'Time' is no option's name"), ("time=1\n#SBATCH --uid=0", "the value of time contains")],
)  # fmt: skip
def test_bad_options_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options([setting], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", r"has no table \[launch\]"), ("[launch", "cannot be read"),
     ("[launch]\ntime = [1]", "launch.time must be text, a number, true or false")],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_options([], file)
    with pytest.raises(InputError, match="No such file"):
        read_options([], tmp_path / "none.toml")


def test_each_store_has_labels_of_its_own(tmp_path: Path) -> None:
    here, there = (launch_label("cuts", find_store(str(tmp_path / name))) for name in ("here", "there"))
    assert here.startswith("ablation-cuts-")
    assert here != there
    assert here == launch_label("cuts", find_store(str(tmp_path / "here")))


def test_studies_whose_names_kubernetes_shortens_or_changes_have_labels_of_their_own(tmp_path: Path) -> None:
    store, long = find_store(str(tmp_path)), "a_very_long_name_of_a_study_of_cuts_number_"
    names = ("my_cuts", "my-cuts", "My.cuts", f"{long}1", f"{long}2")
    assert len({object_name(launch_label(name, store)) for name in names}) == len(names)


def test_a_label_does_not_depend_on_user_and_password(tmp_path: Path) -> None:
    addresses = (
        "postgresql://host/database?sslmode=require", "postgresql://me:secret@host/database?sslmode=require",
        "postgresql://host/database?sslmode=require&user=me&password=other",
        "postgresql://host/another?sslmode=require",
    )  # fmt: skip
    plain, with_user, with_query, other = (launch_label("cuts", Store(tmp_path, "", address)) for address in addresses)
    assert plain == with_user
    assert plain != other
    assert with_query == launch_label("cuts", Store(tmp_path, "", addresses[2].replace("other", "new")))


def test_a_programs_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "engine"
    program.write_text(
        "#!/bin/sh\necho 'engine: error: no such partition' >&2\necho 'engine: error: refused' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match="^engine: no such partition; refused$"):
        call("engine")
    program.write_text("#!/bin/sh\ncat\n")
    assert call("engine", text="manifest") == "manifest"


def test_variables_that_would_hide_workers_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    hidden = {"SQUEUE_STATES", "SQUEUE_FORMAT2", "SCANCEL_STATE", "SCANCEL_QUIET", "SBATCH_WAIT", "SBATCH_ERROR"}
    for name in (*hidden, "SBATCH_ACCOUNT", "SBATCH_WAIT_ALL_NODES", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KUBERC", "/home/me/kuberc")
    variables = dict(line.split("=", 1) for line in call("engine").splitlines() if "=" in line)
    assert hidden & variables.keys() == set()
    assert {"SBATCH_ACCOUNT", "SBATCH_WAIT_ALL_NODES", "SLURM_CONF"} <= variables.keys()
    assert variables["KUBERC"] == "off"
