from pathlib import Path

import pytest
from scene import Scene

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """A few of the faults are part of every test run, all of them of `make test-faults`."""
    for item in items:
        ours = HERE in Path(item.fspath).parents
        if ours and not any(item.get_closest_marker(mark) for mark in ("fast", "slow")):
            item.add_marker(pytest.mark.fault)


@pytest.fixture
def scene(tmp_path, folder):
    made = Scene(tmp_path, folder)
    yield made
    made.close()


@pytest.fixture
def cheap(scene):
    """A scene whose trials train nothing."""
    scene.environment["DCML_TEST_TRAINER"] = "cheap"
    return scene
