from safemerge.config.mergekit_method import NEEDS_BASE, READ, SUPPORTED, TAKES_BASE


def test_every_method_says_what_it_reads():
    assert set(READ) == set(SUPPORTED)
    assert set(SUPPORTED) >= NEEDS_BASE | TAKES_BASE
    assert READ["della"]["epsilon"]
    assert not READ["ties"]["lambda"]
    assert "density" not in READ["linear"]
