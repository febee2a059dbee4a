"""What people call the components of a model, having seen what is in them: in a TOML file, in a bundle.

    names = read_component_names(Path("names.toml"), labels=("Sandal", "Bag"), components=3, of="runs/mine/1")
    bundle = name_components(Path("model_store/mine/1"), names)

The file has a table a class, and of each only those components that have a name:

    [Sandal]
    0 = "flat"
    1 = "with a heel"

Names change nothing but a bundle's manifest: its files stay as they are, and so does `Bundle.digest`, which says which
weights these are.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from serving.bundle import MANIFEST, Bundle, Manifest, manifest_text
from training.files import replace_text
from training.heads import DiscriminantHead
from training.run import Run

LONGEST = 100  # characters of a name
SCHEMA = 2  # of a manifest that may have names

ComponentNames = dict[str, dict[int, str]]


def read_component_names(file: Path, labels: Sequence[str], components: int, of: object) -> ComponentNames:
    """Read names from a TOML file, or from a bundle's folder.

    Args:
        file: either of them.
        labels: of the classes that may be named.
        components: K; fewer are named.
        of: whose classes they are, for the message.

    Raises:
        ValueError: if a class or a component is not one of these, or a name is no line of text.
        BundleError: if the folder is no bundle.
    """
    if file.is_dir():
        names: ComponentNames = Bundle.load(file).manifest.component_names
    else:
        names = _parsed(file)
    require_known(names, labels, components, of, file)
    return names


def names_for_run(file: Path, run: Run) -> ComponentNames:
    """Read names for the components of a run's head.

    Raises:
        RunError: if the run is not finished.
        ValueError: as `read_component_names`.
    """
    head = run.load_classifier().head
    components = head.components if isinstance(head, DiscriminantHead) else 0
    return read_component_names(file, run.description()["classes"], components, run.path)


def require_known(names: ComponentNames, labels: Sequence[str], components: int, of: object, source: object) -> None:
    """Refuse names of what is not there, and names that are no names.

    Raises:
        ValueError: naming the class, the component or the name.
    """
    for label, of_class in names.items():
        if label not in labels:
            raise ValueError(f"{source} must name classes of {of}, {', '.join(labels)}, got {label!r}")
        if strange := sorted(k for k in of_class if not 0 <= k < components):
            raise ValueError(f"{source} must name components below {components}, got {strange[0]} of {label}")
        for name in of_class.values():
            if not (0 < len(name) <= LONGEST and name.isprintable() and name == name.strip()):
                rule = f"a line of 1 to {LONGEST} characters, none of them a space at either end"
                raise ValueError(f"{source} must have names that are {rule}, got {name!r} of {label}")


def name_components(folder: Path, names: ComponentNames) -> Bundle:
    """Put names in the place of those that a finished bundle has; only its manifest is written anew.

    Args:
        folder: of the bundle.
        names: all of them; classes without a name may be left out.

    Raises:
        BundleError: if the bundle is not what its digests say.
        ValueError: if a class or a component is not one of the bundle's, or a name is no line of text.
    """
    manifest = Bundle.load(folder).manifest
    require_known(names, manifest.labels, components_of(manifest), folder, "component_names")
    kept = {label: dict(sorted(names[label].items())) for label in manifest.labels if names.get(label)}
    renamed = Manifest(**{**dict(manifest), "schema_version": SCHEMA, "component_names": kept})
    replace_text(folder / MANIFEST, manifest_text(renamed))
    return Bundle.load(folder)


def with_name(names: ComponentNames, label: str, component: int, name: str) -> ComponentNames:
    """Names with that of one component changed, or taken away if `name` is empty."""
    of_class = {**names.get(label, {}), component: name}
    return {**names, label: of_class if name else {k: other for k, other in of_class.items() if k != component}}


def components_of(manifest: Manifest) -> int:
    """How many components a class has that may be named: none for a head without responsibilities."""
    return manifest.head.components if "responsibilities" in manifest.outputs else 0


def names_text(manifest: Manifest) -> str:
    """A bundle's names as the TOML file that they can be read from, with a comment in the place of each that lacks."""
    lines = [f"# What the components of {manifest.name} {manifest.version} show."]
    for label in manifest.labels:
        lines += ["", f"[{_key(label)}]"]
        of_class = manifest.component_names.get(label, {})
        for k in range(components_of(manifest)):
            lines.append(_line(k, of_class[k]) if k in of_class else f"# {_line(k, '')}")
    return "\n".join(lines) + "\n"


def _key(label: str) -> str:
    """A label as a key of TOML, in quotes where it needs them."""
    return tomli_w.dumps({label: 0}).removesuffix(" = 0\n")


def _line(component: int, name: str) -> str:
    return tomli_w.dumps({str(component): name}).removesuffix("\n")


def _parsed(file: Path) -> ComponentNames:
    try:
        tree: Any = tomllib.loads(file.read_text(encoding="utf-8"))
        return TypeAdapter(ComponentNames).validate_python(tree)
    except (ValidationError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        rule = 'must be TOML with a table a class of lines such as 0 = "flat"'
        raise ValueError(f"{file} {rule}, got {str(exc).splitlines()[0]}") from None
