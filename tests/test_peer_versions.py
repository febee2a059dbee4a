from load_tests.peers.environments import known_peers, packages


def test_extras_and_bounds_are_no_part_of_a_package_name():
    ray, mlserver = (packages(known_peers()[name]) for name in ("ray_serve", "mlserver"))

    assert [one.split()[0] for one in ray] == ["ray"]
    assert [one.split()[0] for one in mlserver] == ["mlserver", "uvloop", "httptools"]
