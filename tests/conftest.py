"""What several test files share."""

import gc

pytest_plugins = ["pytester"]


def pytest_collection_finish() -> None:
    """Libraries that are imported by now stay: every collection that a closed model brings need not look at them."""
    gc.collect()
    gc.freeze()
