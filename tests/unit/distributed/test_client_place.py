from safemerge.distributed import search


def test_clients_stay_beside_the_driver_where_they_fit():
    fits = 5 * search.TRIAL_MEMORY_BYTES
    found = search._beside_driver(5, ("ab12", fits))
    assert found == {"bundle_label_selector": [{"ray.io/node-id": "ab12"}]}
    assert search._beside_driver(6, ("ab12", fits)) == {}
