"""Settings of every process of the tests, and the fixtures of those that run some."""

import gc
import os

# before any import of the libraries: no test reaches the network
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    # with `-n` the first process only hands out tests: it need not import the stack, for which the others would wait
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        gc.disable()  # a collection would go through all that the imported stack has made, time after time
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # and later ones leave out what is there by now
    gc.set_threshold(10_000)  # 700 new objects are few for what builds queries and models
    gc.enable()


def pytest_collection_modifyitems(items):
    # the longest of the last files goes first: else one worker would be at it while the other has nothing left to do
    items.sort(key=lambda item: item.path.name != "test_cli.py")
