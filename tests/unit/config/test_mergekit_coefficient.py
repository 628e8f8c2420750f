from safemerge.config.mergekit_file import Entry
from safemerge.config.mergekit_method import Groups, Setting


def test_the_first_filter_that_holds_gives_a_groups_value():
    setting = Setting(((Entry("mlp", 0.1), Entry("mlp.up", 0.9), Entry(None, [0.0, 1.0])),))
    groups = Groups([setting], [4])
    assert [group["tensors"] for group in groups.layer_groups()] == [["*mlp.up*"], ["*mlp*"]]
    assert groups.coefficient(setting) == {
        "filter-1": 0.1, "filter-2": 0.1, "default": [0.0, 1.0],
    }  # fmt: skip
    assert groups.has_gradients
    assert not groups.apart


def test_signs_of_globs_in_a_filter_are_text():
    setting = Setting(((Entry("a[0]*", 0.1), Entry(None, 0.2)),))
    assert Groups([setting], [1]).layer_groups()[0]["tensors"] == ["*a[[]0][*]*"]


def test_slices_that_differ_are_groups_of_layers_and_of_what_is_outside():
    setting = Setting(((Entry(None, 0.1),), (Entry(None, [0.2, 0.4]),)))
    groups = Groups([setting], [1, 2])
    rules = [(group.get("layers"), group.get("outside")) for group in groups.layer_groups()]
    assert rules == [(None, "before"), ("0-0", None), ("1-2", None), (None, "after")]
    assert groups.coefficient(setting) == {
        "before": 0.1, "slice-1": 0.1, "slice-2": [0.2, 0.2, 0.4], "after": 0.2, "default": 0.1,
    }  # fmt: skip
