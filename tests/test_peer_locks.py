import re

import pytest

from load_tests.peers.environments import LOCK, folder_of, known_peers, packages

LOCKED = [peer for peer in known_peers().values() if (folder_of(peer) / LOCK).is_file()]


@pytest.mark.parametrize("peer", LOCKED, ids=lambda peer: peer.name)
def test_a_peer_says_which_version_of_its_server_is_measured(peer):
    assert packages(peer)


def test_extras_and_bounds_are_no_part_of_a_package_name():
    ray, mlserver = (packages(known_peers()[name]) for name in ("ray_serve", "mlserver"))

    assert [one.split()[0] for one in ray] == ["ray"]
    assert [one.split()[0] for one in mlserver] == ["mlserver", "uvloop", "httptools"]


@pytest.mark.parametrize("peer", LOCKED, ids=lambda peer: peer.name)
def test_a_lock_holds_hashes_and_no_address(peer):
    text = (folder_of(peer) / LOCK).read_text()

    assert "://" not in text
    assert all(len(re.findall("--hash=sha256:", pin)) >= 1 for pin in re.split(r"\n(?=\S)", text.strip()))
