"""What a deploy or rollback that was killed has left on a server, made whole by the next one.

Both take their steps in an order that leaves one of these:

- a version that no record knows. It is adopted if it is the default and in the model store, as a deploy's last step but
  one makes it, for the next start would take it too; else it is taken away;
- a version that is recorded as the default, but set aside in the store: its rollback is carried out.
"""

import filecmp
import shutil
import time
from dataclasses import replace
from pathlib import Path

from serving.torchserve.archive import Archive
from serving.torchserve.drain import stand_in_line
from serving.torchserve.management import Management, inference_key
from serving.torchserve.state import ARCHIVES, Server, save
from serving.torchserve.store import set_aside

IN_HAND_S = 2.0  # for the last batch of a version that is taken away
KEPT_VERSIONS = 2  # of a model: the default, and the one to go back to


def settle(management: Management, server: Server, state: Path) -> Server:
    """Adopt or take away each version that the record does not know.

    Args:
        management: of the server.
        server: as it is recorded.
        state: its folder.

    Returns:
        The server as it is recorded now.
    """
    for name in management.models():
        default = Archive(name, management.default(name))
        if (name, default.version) not in server.versions and _is_published(default, server, state):
            server = with_default(server, default)
            save(server, state)
        for one in management.describe(name):
            if (name, int(one.version)) not in server.versions:
                if int(one.version) == default.version and name in server.history:
                    make_default(management, Archive(name, server.history[name][-1]))
                retire(management, server, state, Archive(name, int(one.version)))
    _clear(server, state)
    return server


def with_default(server: Server, new: Archive) -> Server:
    """The record of a server whose model has a new default version; of those before it, one stays."""
    history = [*server.history.get(new.name, []), new.version][-KEPT_VERSIONS:]
    models = tuple(dict.fromkeys([*server.models, new.name]))
    return replace(server, models=models, history=server.history | {new.name: history})


def roll_back(management: Management, server: Server, state: Path, name: str) -> Server:
    """Make the version before the default the default again, and take the present one away."""
    before, present = (Archive(name, version) for version in server.history[name])
    set_aside(Path(server.store), present)
    make_default(management, before)
    server = replace(server, history={**server.history, name: [before.version]})
    save(server, state)
    retire(management, server, state, present)
    return server


def make_default(management: Management, version: Archive) -> None:
    """Have a version answer where none is named."""
    management.call("PUT", f"/models/{version.name}/{version.version}/set-default")


def retire(management: Management, server: Server, state: Path, old: Archive) -> None:
    """Take a version away when it has answered what was asked of it by its number."""
    path = f"{old.name}/{old.version}"
    stand_in_line(server, [path], inference_key(state), time.monotonic() + IN_HAND_S)
    time.sleep(IN_HAND_S)
    management.call("DELETE", f"/models/{path}")
    (state / ARCHIVES / old.file).unlink(missing_ok=True)


def _is_published(version: Archive, server: Server, state: Path) -> bool:
    published, own = Path(server.store, version.file), state / ARCHIVES / version.file
    return published.exists() and own.exists() and filecmp.cmp(published, own, shallow=False)


def _clear(server: Server, state: Path) -> None:
    """Remove archives that nothing serves, and what is left of making one."""
    served = {Archive(*one).file for one in server.versions}
    for path in (state / ARCHIVES).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in served:
            path.unlink()
