"""Finds and writes study files, and checks the paths that they name."""

from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.files import expand, write_atomically
from ablation.base.text import nearest
from ablation.spec.reading import check_name
from ablation.spec.study import StudySpec
from ablation.spec.tables import Data

PACKAGE = Path(__file__).parent.parent

SCHEMA = "study.schema.json"  # of study files, for editors

# Of the working folder, of an installed copy, and of the repository.
STUDY_FOLDERS = (Path("studies"), PACKAGE / "studies", PACKAGE.parent / "studies")


def study_files() -> dict[str, Path]:
    """Return the study files by name; one in the working folder's `studies` hides one of the package."""
    paths = [path for folder in reversed(STUDY_FOLDERS) for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in paths if path.is_file()}  # not an editor's lock, which is a dangling link


def find_study_file(study: str) -> Path:
    """Return the file of a study given by name or by path.

    Raises:
        InputError: there is no such study; names the nearest one.
    """
    if study.endswith(".toml"):
        if not Path(study).is_file():
            raise InputError(f"{study}: no such file")
        return Path(study)
    files = study_files()
    if study not in files:
        raise InputError(f"no study {study!r}{nearest(study, sorted(files))}")
    return files[study]


def write_new_study(name: str) -> Path:
    """Write a commented study file to the working folder's `studies`; return its path.

    Raises:
        InputError: a study has that name already, or the file cannot be written.
    """
    path = STUDY_FOLDERS[0] / f"{check_name(name)}.toml"
    if name in study_files():
        raise InputError(f"--new: there is a study {name!r}: {study_files()[name]}")
    schema = PACKAGE / SCHEMA
    in_repository = PACKAGE.parent == Path.cwd()
    address = f"../{PACKAGE.name}/{SCHEMA}" if in_repository else SCHEMA  # so that the folder can be shared
    template = Path(__file__).with_name("study_template.toml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template.format(schema=address, command=name))
        if not in_repository:
            write_atomically(path.with_name(SCHEMA), schema.read_bytes())
    except OSError as error:
        raise InputError(f"--new: {path} cannot be written ({error.strerror})") from None
    return path


def check_weights_file(spec: StudySpec) -> None:
    """Refuse a weights file that does not exist.

    Raises:
        InputError: names the file.
    """
    if spec.backbone.has_weights_file and not expand(str(spec.backbone.weights)).is_file():
        raise InputError(f"backbone.weights: {spec.backbone.weights}: no such file")


def check_images(data: Data) -> None:
    """Refuse images of the user's own that are not there at all; their content is checked when it is read.

    Raises:
        InputError: names the folder or the file.
    """
    root = expand(data.root or ".")
    if data.source == "imagefolder" and not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise InputError(
            f"data.root: {root}: {what}; it must hold train/<class>/* and test/<class>/*, or <class>/* alone"
        )
    if data.source == "huggingface" and not root.exists():
        raise InputError(f"data.root: {root}: there is no such folder or Parquet file")
    if data.manifest is not None:
        manifest = expand(data.manifest)
        if not manifest.is_file():
            what = "is not a file" if manifest.exists() else "there is no such file"
            raise InputError(f"data.manifest: {manifest}: {what}")
        if not root.is_dir():
            raise InputError(f"data.root: {root}: there is no such folder; the paths of {manifest.name} start there")
