"""Synthetic runs on disk, drawn once."""

import pytest
import synthetic_run as synthetic


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory):
    """A finished run of 20 sampled trials, small enough to draw quickly."""
    return synthetic.write_run(
        tmp_path_factory.mktemp("published") / "demo",
        spec=synthetic.make_spec(num_trials=20),
        num_sampled=20,
        synthetic=synthetic.Synthetic(counts={"search": 40, "report": 60}),
    )
